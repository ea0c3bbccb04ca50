//! Random changes of a store, and whether the tree follows: against a plain map of what the store holds.

use std::collections::BTreeMap;
use std::time::Duration;

use annals::base::{ErrorKind, Timestamp};
use annals::fs::{Handle, Inode, Tree};

use super::random::Random;
use super::{Scratch, find, list, open, read};

/// As long as the catalog may be behind the store.
const BEHIND: Duration = Duration::from_millis(1100);
const ROUNDS: usize = 6;
const CHANGES: u64 = 12;

/// What the store holds: guest, backup, file, content.
type Model = BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<u8>>>>;

/// An open file, and what it must read as for as long as it is open.
struct Held {
    handle: Handle,
    content: Vec<u8>,
}

fn change(random: &mut Random, scratch: &Scratch, model: &mut Model) {
    let guest = format!("g{}", random.below(3));
    let time = Timestamp::from_epoch(1_700_000_000 + random.below(4) as i64).unwrap().file_name();
    match random.below(10) {
        0 => {
            let _ = std::fs::remove_dir_all(scratch.path().join(&guest));
            model.remove(&guest);
        }
        1 | 2 => {
            let _ = std::fs::remove_dir_all(scratch.backup(&guest, &time));
            if let Some(backups) = model.get_mut(&guest) {
                backups.remove(&time);
            }
        }
        3 => {
            let file = if random.below(2) == 0 { "disk.raw" } else { "guest.conf" };
            let _ = std::fs::remove_file(scratch.backup(&guest, &time).join(file));
            if let Some(files) = model.get_mut(&guest).and_then(|backups| backups.get_mut(&time)) {
                files.remove(file);
            }
        }
        _ => {
            let file = if random.below(2) == 0 { "disk.raw" } else { "guest.conf" };
            // Of few lengths, so that files often differ in nothing but their bytes.
            let content = vec![random.below(250) as u8 + 1; 512 * (1 + random.below(2) as usize)];
            scratch.put(&guest, &time, file, &content);
            model.entry(guest).or_default().entry(time).or_default().insert(file.to_owned(), content);
        }
    }
}

/// Walks through the whole tree and compares it with the model.
fn compare(tree: &Tree, model: &Model) {
    let mut root: Vec<String> = vec![".annals".to_owned()];
    root.extend(model.keys().cloned());
    assert_eq!(list(tree, Inode::ROOT).unwrap(), root);
    for (guest, backups) in model {
        let dir = find(tree, guest).unwrap().attributes.inode;
        let mut names: Vec<String> = backups.keys().cloned().collect();
        match names.last().cloned() {
            Some(newest) => {
                let link = find(tree, &format!("{guest}/latest")).unwrap().attributes.inode;
                assert_eq!(tree.read_link(link).unwrap(), *newest);
                names.push("latest".to_owned());
            }
            None => assert!(find(tree, &format!("{guest}/latest")).is_err()),
        }
        assert_eq!(list(tree, dir).unwrap(), names);
        for (time, files) in backups {
            let dir = find(tree, &format!("{guest}/{time}")).unwrap().attributes.inode;
            assert_eq!(list(tree, dir).unwrap(), files.keys().cloned().collect::<Vec<_>>());
            for (file, content) in files {
                let path = format!("{guest}/{time}/{file}");
                let (inode, handle) = open(tree, &path).unwrap();
                assert_eq!(tree.attributes(inode).unwrap().attributes.size, content.len() as u64, "{path}");
                assert!(read(tree, handle).unwrap() == *content, "{path} has other bytes");
                tree.close(handle);
            }
        }
    }
}

fn play(seed: u64) {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    let (mut random, mut model, mut held) = (Random::new(seed), Model::new(), Vec::<Held>::new());
    for _ in 0..ROUNDS {
        for _ in 0..CHANGES {
            change(&mut random, &scratch, &mut model);
            // In the midst of it a reader sees something that was there within the last second, or an error; what he
            // has open stays as it is.
            let guest = format!("g{}", random.below(3));
            match open(&tree, &format!("{guest}/latest")) {
                Ok(_) => panic!("a symlink was opened"),
                Err(e) => assert!(matches!(e.kind(), ErrorKind::Usage | ErrorKind::NotFound), "{}", e.report()),
            }
            assert!(held.iter().all(|held| read(&tree, held.handle).unwrap() == held.content));
        }
        std::thread::sleep(BEHIND);
        compare(&tree, &model);
        // Twice, as all is known by now.
        compare(&tree, &model);
        for (guest, backups) in &model {
            for (time, files) in backups {
                for (file, content) in files {
                    if random.below(3) == 0 {
                        let (_, handle) = open(&tree, &format!("{guest}/{time}/{file}")).unwrap();
                        held.push(Held { handle, content: content.clone() });
                    }
                }
            }
        }
        while held.len() > 6 {
            let closed = held.swap_remove(random.below(held.len() as u64) as usize);
            tree.close(closed.handle);
        }
        assert!(held.iter().all(|held| read(&tree, held.handle).unwrap() == held.content));
    }
}

#[test]
fn the_tree_follows_every_change_and_open_files_stay_what_they_were() {
    std::thread::scope(|scope| {
        for seed in 1..=12 {
            scope.spawn(move || play(seed));
        }
    });
}
