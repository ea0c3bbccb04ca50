//! What the program says and how it ends, whatever the store.

use std::path::Path;
use std::process::Command;

use super::support::stores::{Ran, TestStore, annals, annals_at};

fn bare(args: &[&str]) -> Ran {
    annals(Command::new(env!("CARGO_BIN_EXE_annals")).args(args))
}

#[test]
fn init_makes_a_store_once() {
    let store = TestStore::new();
    let path = store.path().join("new");
    let path = path.to_str().unwrap();
    let made = bare(&["--store", path, "init", "--json"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let marker = std::fs::read_to_string(format!("{path}/store.json")).unwrap();
    assert!(marker.contains(made.json()["uuid"].as_str().unwrap()), "{marker}");
    let again = bare(&["--store", path, "init"]);
    assert_eq!(again.code, Some(1));
    assert_eq!(again.stderr, format!("annals: error: '{path}' is a store already\n"));
    assert_eq!(bare(&["list", "--store", path]).code, Some(0), "global options may follow the command");
}

#[test]
fn wrong_words_exit_with_2_and_say_what_to_do() {
    let store = TestStore::new();
    for args in [
        vec!["list"],
        vec!["--store", "/tmp", "list", "../x"],
        vec!["--store", "/tmp", "show", "100"],
        vec!["--store", "/tmp", "show", "100@25:61"],
        vec!["--store", "/tmp", "show"],
        vec!["frobnicate"],
        vec!["list", "--frobnicate"],
        vec![],
    ] {
        let ran = bare(&args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty());
    }
    assert!(bare(&["list"]).stderr.contains("hint: give --store DIR or set ANNALS_STORE"));
    assert!(store.annals(&["show", "100"]).stderr.contains("hint: a backup is named GUEST@latest"));
}

#[test]
fn what_is_not_there_exits_with_1() {
    let store = TestStore::new();
    store.write("100/qemu-1730998282/guest.conf", "");
    for (args, says) in [
        (vec!["show", "101@latest"], "has no guest 101"),
        (vec!["show", "100@2024-11-08"], "guest 100 has no backup of 2024-11-08"),
        (vec!["list", "101"], "has no guest 101"),
        (vec!["list"], "cannot open the directory '/nowhere/at/all'"),
    ] {
        let path = if args.len() == 1 { Path::new("/nowhere/at/all") } else { store.path() };
        let ran = annals_at(path, &args);
        assert_eq!(ran.code, Some(1), "{args:?}");
        assert!(ran.stderr.starts_with("annals: error: ") && ran.stderr.contains(says), "{}", ran.stderr);
        assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    }
}

#[test]
fn the_store_may_come_from_the_environment() {
    let store = TestStore::new();
    store.write("100/qemu-1730998282/guest.conf", "");
    let mut command = Command::new("/usr/bin/env");
    command.arg(format!("ANNALS_STORE={}", store.path().display())).arg(env!("CARGO_BIN_EXE_annals")).arg("list");
    let ran = annals(&mut command);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("\n100 "), "{}", ran.stdout);
}

#[test]
fn help_and_completions_go_to_standard_output() {
    for args in [vec!["--help"], vec!["list", "--help"], vec!["--version"]] {
        let ran = bare(&args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef annals"), ("fish", "complete -c annals"), ("elvish", "annals")]
    {
        let ran = bare(&["completions", shell]);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains(part) && ran.stdout.contains("show"), "{shell}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let store = TestStore::new();
    let script = format!("{} completions bash | head -c1; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_annals"));
    let ran = annals(Command::new("bash").args(["-c", &script]));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    drop(store);
}

#[test]
fn symlinks_among_the_guests_are_passed_over_and_told() {
    let store = TestStore::new();
    store.write("100/qemu-1730998282/guest.conf", "");
    std::os::unix::fs::symlink("/etc", store.path().join("etc")).unwrap();
    let ran = store.annals(&["list"]);
    assert_eq!(ran.code, Some(3));
    assert!(ran.stdout.contains("broken: store: etc: it is not a directory"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("passwd"));
}
