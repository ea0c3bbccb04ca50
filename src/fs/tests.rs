//! The table of inodes. What readers see of a whole tree is tested in `tests/fs/`.

use std::collections::HashMap;

use proptest::prelude::*;

use super::Inode;
use super::nodes::{Node, Nodes, ShortName, What};
use crate::archive::NodeId;

fn guest(id: &str) -> Node {
    Node { parent: Inode::ROOT, what: What::Guest(id.into()), version: 0 }
}

fn child(parent: Inode, what: What, version: u64) -> Node {
    Node { parent, what, version }
}

#[test]
fn inode_numbers_are_those_of_every_earlier_release() {
    let number = |parent, what: What| Inode::derive(parent, &what, 0).raw();
    let guest = number(Inode::ROOT, What::Guest("100".into()));
    assert_eq!(guest, 3_355_186_939_518_432_377);
    let backup = number(Inode::from_raw(guest), What::Backup(ShortName::new("2024-11-07T16-51-22Z")));
    assert_eq!(backup, 3_905_657_138_005_687_169);
    assert_eq!(number(Inode::from_raw(backup), What::Disk("drive-scsi0".into())), 4_111_203_831_053_223_590);
    assert_eq!(number(Inode::from_raw(backup), What::Partition("drive-scsi0".into(), 1)), 3_736_871_966_895_408_940);
    assert_eq!(number(Inode::from_raw(backup), What::File("guest.conf".into())), 7_212_748_325_282_181_156);
}

#[test]
fn things_that_differ_have_different_numbers() {
    let parent = Inode::from_raw(7);
    let things = [
        What::Guest("a".into()),
        What::Backup(ShortName::new("a")),
        What::Backup(ShortName::new("2024-11-07T16-51-22Z")),
        What::File("a".into()),
        What::Disk("a".into()),
        What::Broken("a".into()),
        What::Partition("a".into(), 1),
        What::Partition("a".into(), 2),
        What::Latest(ShortName::new("a")),
        What::Control,
        What::Status,
    ];
    let numbers: std::collections::HashSet<_> = things.iter().map(|what| Inode::derive(parent, what, 0)).collect();
    assert_eq!(numbers.len(), things.len());
}

#[test]
fn a_file_that_was_replaced_while_the_old_one_is_known_has_a_number_of_its_own() {
    let nodes = Nodes::new();
    let at = nodes.look_up(guest("100")).unwrap();
    let disk = |version| child(at, What::Disk("d".into()), version);
    let old = nodes.look_up(disk(1)).unwrap();
    let new = nodes.look_up(disk(2)).unwrap();
    assert_ne!(old, new);
    assert_eq!(nodes.get(old).unwrap().version, 1);
    assert_eq!(nodes.look_up(disk(1)).unwrap(), old);

    // The new one keeps its number when the old one, which has the first choice, is gone.
    nodes.forget(old, 2);
    assert_eq!(nodes.look_up(disk(2)).unwrap(), new);
    assert_eq!(nodes.number(&disk(2)).unwrap(), new);

    // And in the next mount the file has the number that its name gives.
    assert_eq!(Nodes::new().number(&disk(2)).unwrap(), old);
}

#[test]
fn a_parent_stays_while_something_below_it_is_known() {
    let nodes = Nodes::new();
    let parent = nodes.look_up(guest("100")).unwrap();
    let below = nodes.look_up(child(parent, What::Latest(ShortName::new("a")), 0)).unwrap();
    nodes.forget(parent, 1);
    assert_eq!(nodes.path(below).unwrap().len(), 2);
    nodes.forget(below, 1);
    assert!(nodes.get(parent).is_err() && nodes.get(below).is_err());
    assert_eq!(nodes.len(), 1);
}

#[test]
fn the_root_is_never_forgotten_and_a_lookup_below_something_unknown_fails() {
    let nodes = Nodes::new();
    nodes.forget(Inode::ROOT, u64::MAX);
    nodes.forget(Inode::from_raw(999), 1);
    assert_eq!(nodes.get(Inode::ROOT).unwrap().what, What::Root);
    assert!(nodes.look_up(child(Inode::from_raw(999), What::Latest(ShortName::new("a")), 0)).is_err());
}

#[test]
fn a_backups_name_takes_no_allocation_where_it_is_a_time() {
    assert!(matches!(ShortName::new("2024-11-07T16-51-22Z"), ShortName::Time(_)));
    assert!(matches!(ShortName::new("2024-11-07T16-51-22Z-lxc"), ShortName::Other(_)));
    assert!(size_of::<Node>() <= 48, "{} bytes a node", size_of::<Node>());
}

#[test]
fn an_entry_of_an_archive_is_of_the_archive_that_is_there() {
    let nodes = Nodes::new();
    let top = nodes.look_up(child(Inode::ROOT, What::Archive("a".into()), 7)).unwrap();
    let member = nodes.look_up(child(top, What::Member(NodeId(3)), 7)).unwrap();
    assert_eq!(nodes.get(member).unwrap(), child(top, What::Member(NodeId(3)), 7));
    assert!(nodes.look_up(child(top, What::Member(NodeId(3)), 8)).is_err(), "an entry of another state of it");
    nodes.forget(top, 1);
    assert!(nodes.get(top).is_ok(), "the entry holds its archive");
    nodes.forget(member, 1);
    assert_eq!(nodes.len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    LookUp { guest: u8, version: Option<u64> },
    LookUpMember { version: u64, id: u64 },
    Forget { which: usize, count: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let look_up =
        (0..4_u8, proptest::option::of(0..3_u64)).prop_map(|(guest, version)| Step::LookUp { guest, version });
    let member = (0..2_u64, 0..4_u64).prop_map(|(version, id)| Step::LookUpMember { version, id });
    let forget = (any::<usize>(), 1..3_u64).prop_map(|(which, count)| Step::Forget { which, count });
    proptest::collection::vec(prop_oneof![look_up, member, forget], 0..60)
}

proptest! {
    /// Against a plain list of what the kernel holds: what it holds is there and is what it was looked up as, what it
    /// has forgotten is gone.
    #[test]
    fn the_table_holds_what_the_kernel_holds(steps in steps()) {
        let nodes = Nodes::new();
        let mut held: HashMap<Inode, (Node, u64)> = HashMap::new();
        for step in steps {
            match step {
                Step::LookUp { guest: id, version } => {
                    let node = guest(&id.to_string());
                    let parent = nodes.look_up(node.clone()).unwrap();
                    held.entry(parent).or_insert((node, 0)).1 += 1;
                    if let Some(version) = version {
                        let node = child(parent, What::Disk("d".into()), version);
                        let inode = nodes.look_up(node.clone()).unwrap();
                        let known = held.entry(inode).or_insert((node.clone(), 0));
                        prop_assert_eq!(&known.0, &node, "two things under one number");
                        known.1 += 1;
                    }
                }
                Step::LookUpMember { version, id } => {
                    let mut parent = Inode::ROOT;
                    for what in [What::Guest("0".into()), What::Archive("a".into()), What::Member(NodeId(id))] {
                        let version = if parent == Inode::ROOT { 0 } else { version };
                        let node = child(parent, what, version);
                        parent = nodes.look_up(node.clone()).unwrap();
                        let known = held.entry(parent).or_insert((node.clone(), 0));
                        prop_assert_eq!(&known.0, &node, "two things under one number");
                        known.1 += 1;
                    }
                }
                Step::Forget { which, count } => {
                    let Some(inode) = held.keys().copied().nth(which % held.len().max(1)) else { continue };
                    let count = count.min(held[&inode].1);
                    nodes.forget(inode, count);
                    let left = held[&inode].1 - count;
                    held.get_mut(&inode).unwrap().1 = left;
                    if left == 0 {
                        held.remove(&inode);
                    }
                }
            }
            for (inode, (node, _)) in &held {
                prop_assert_eq!(&nodes.get(*inode).unwrap(), node);
                prop_assert_eq!(nodes.number(node).unwrap(), *inode);
            }
        }
        for (inode, (_, lookups)) in &held {
            nodes.forget(*inode, *lookups);
        }
        prop_assert_eq!(nodes.len(), 1);
    }
}
