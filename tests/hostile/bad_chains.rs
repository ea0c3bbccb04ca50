//! Chains that are not whole or not honest: what a backing name leads to.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use annals::base::{ErrorKind, GuestOffset};
use annals::storage::memory::{MemoryFile, MemoryGate};
use annals::storage::{FilePool, Gate};

use crate::image::{Image, open, path, use_every_way};
use crate::support::isolated::isolated_test;
use crate::support::tools::{command, have, run};

/// A guest's directory with `a.qcow2` ← `b.qcow2` ← `c.qcow2`, made by QEMU, beside something that is none of its business.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Option<Self> {
        if !have(&["qemu-img", "qemu-io"]) {
            return None;
        }
        let guest = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(guest.root()).unwrap();
        std::fs::write(guest.dir.path().join("secret"), "another guest's secret").unwrap();
        let mut below: Option<&str> = None;
        for name in ["a.qcow2", "b.qcow2", "c.qcow2"] {
            let file = guest.file(name);
            let mut args = vec!["create", "-q", "-f", "qcow2"];
            args.extend(below.into_iter().flat_map(|below| ["-b", below, "-F", "qcow2"]));
            run("qemu-img", &[&args[..], &[&file, "1M"]].concat());
            run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 0 128k", &file]);
            below = Some(name);
        }
        Some(guest)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("100")
    }

    fn file(&self, name: &str) -> String {
        self.root().join(name).to_str().unwrap().to_owned()
    }

    fn rebase(&self, image: &str, backing: &str, format: &str) {
        run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", backing, "-F", format, &self.file(image)]);
    }

    /// The refusal of the chain from `c.qcow2` on.
    fn refusal(&self) -> (ErrorKind, String) {
        let gate = Gate::open(&self.root(), FilePool::new(16)).unwrap();
        let error = open(&gate, "c.qcow2").unwrap_err();
        (error.kind(), error.report())
    }

    fn refused(&self, kind: ErrorKind, words: &[&str]) {
        let (found, report) = self.refusal();
        assert_eq!(found, kind, "{report}");
        for word in words {
            assert!(report.contains(word), "'{word}' is not in: {report}");
        }
    }

    fn replace(&self, name: &str, with: impl FnOnce(&Path)) {
        std::fs::remove_file(self.file(name)).unwrap();
        with(Path::new(&self.file(name)));
    }
}

isolated_test! {
    fn cycles_of_any_length_are_named() {
        let Some(guest) = Guest::new() else { return };
        guest.rebase("a.qcow2", "c.qcow2", "qcow2");
        guest.refused(ErrorKind::Corrupt, &["cycle", "'c.qcow2'"]);
        guest.rebase("a.qcow2", "b.qcow2", "qcow2");
        guest.refused(ErrorKind::Corrupt, &["cycle", "'b.qcow2'"]);
        guest.rebase("c.qcow2", "c.qcow2", "qcow2");
        guest.refused(ErrorKind::Corrupt, &["cycle", "'c.qcow2'"]);
    }
}

isolated_test! {
    fn a_cycle_through_hard_links_is_still_a_cycle() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("a.qcow2", |a| std::fs::hard_link(guest.file("c.qcow2"), a).unwrap());
        guest.refused(ErrorKind::Corrupt, &["cycle"]);
    }
}

isolated_test! {
    fn a_missing_layer_is_named_with_the_one_that_needs_it() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("a.qcow2", |_| {});
        guest.refused(ErrorKind::MissingLayer, &["backing file of 'b.qcow2'", "'a.qcow2'"]);
    }
}

isolated_test! {
    fn a_layer_that_is_no_regular_file_is_refused_at_once() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("a.qcow2", run_mkfifo);
        guest.refused(ErrorKind::Refused, &["'a.qcow2'", "FIFO"]);
        guest.replace("a.qcow2", |a| std::fs::create_dir(a).unwrap());
        guest.refused(ErrorKind::Refused, &["'a.qcow2'", "directory"]);
        std::fs::remove_dir(guest.file("a.qcow2")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(guest.file("a.qcow2")).unwrap();
        let (_, report) = guest.refusal();
        assert!(report.contains("'a.qcow2'"), "{report}");
    }
}

fn run_mkfifo(at: &Path) {
    run("mkfifo", &[at]);
}

isolated_test! {
    fn no_symlink_is_followed_wherever_it_leads() {
        let Some(guest) = Guest::new() else { return };
        std::fs::rename(guest.file("a.qcow2"), guest.file("real.qcow2")).unwrap();
        for to in ["real.qcow2", "../secret", "/etc/passwd", "/dev/zero", "a.qcow2", "nowhere"] {
            symlink(to, guest.file("a.qcow2")).unwrap();
            guest.refused(ErrorKind::Refused, &["'a.qcow2'", "symlink"]);
            std::fs::remove_file(guest.file("a.qcow2")).unwrap();
        }
        symlink("..", guest.file("up")).unwrap();
        guest.rebase("b.qcow2", "up/secret", "raw");
        guest.refused(ErrorKind::Refused, &["symlink"]);
    }
}

isolated_test! {
    fn no_backing_name_leads_out_of_the_guest() {
        let Some(guest) = Guest::new() else { return };
        let secret = guest.dir.path().join("secret");
        for (name, word) in [
            ("../secret", "leads out"),
            ("./../100/../secret", "leads out"),
            (secret.to_str().unwrap(), "absolute"),
            ("/etc/shadow", "absolute"),
            ("file:../secret", "protocol"),
            ("nbd:unix:/tmp/x", "protocol"),
            ("nbd://localhost/x", "protocol"),
            ("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}}", "protocol"),
        ] {
            guest.rebase("b.qcow2", name, "raw");
            guest.refused(ErrorKind::Refused, &["'b.qcow2'", word]);
        }
    }
}

isolated_test! {
    fn formats_other_than_qcow2_and_raw_are_refused_by_name() {
        let Some(guest) = Guest::new() else { return };
        guest.rebase("b.qcow2", "a.qcow2", "vmdk");
        guest.refused(ErrorKind::Unsupported, &["'b.qcow2'", "'vmdk'"]);
    }
}

isolated_test! {
    fn an_external_data_file_is_refused_and_never_opened() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("a.qcow2", |a| {
            let options = "data_file=../secret,data_file_raw=on";
            // QEMU wants to make the data file, so it gets one and the name is what matters.
            let file = a.to_str().unwrap();
            run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options.replace("../secret", &guest.file("x")), file, "1M"]);
        });
        guest.refused(ErrorKind::Unsupported, &["'a.qcow2'", "data file"]);
    }
}

isolated_test! {
    fn an_encrypted_layer_is_refused_by_name() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("a.qcow2", |a| {
            let file = a.to_str().unwrap();
            let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
            let args = ["create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o", options, file, "1M"];
            // QEMU measures how fast this machine derives keys, and gives up where another process takes its turn meanwhile.
            let mut tries = (0..20).map(|_| command("qemu-img").args(args).status().unwrap().success());
            assert!(tries.any(|made| made), "qemu-img makes no encrypted image");
        });
        guest.refused(ErrorKind::Unsupported, &["'a.qcow2'", "LUKS"]);
    }
}

isolated_test! {
    fn a_layer_that_is_some_other_file_is_refused() {
        let Some(guest) = Guest::new() else { return };
        for content in [&b""[..], b"QFI", b"QFI\xfb", b"not an image at all", &[0; 4096], &[0xff; 4096]] {
            guest.replace("a.qcow2", |a| std::fs::write(a, content).unwrap());
            guest.refused(ErrorKind::Corrupt, &["'a.qcow2'"]);
        }
    }
}

isolated_test! {
    fn a_chain_deeper_than_any_real_one_is_refused_and_a_deep_one_is_not() {
        let mut gate = MemoryGate::new("100");
        let image = |below: u32| match below {
            0 => Image::new(9, 512).bytes,
            below => Image::new(9, 512).backed_by(&format!("{}", below - 1), "qcow2").bytes,
        };
        for n in 0..=10_001 {
            gate.insert(&n.to_string(), MemoryFile::new(image(n)));
        }
        use_every_way(&open(&gate, "3000").unwrap(), 512);
        let error = open(&gate, "10001").unwrap_err();
        assert!(error.report().contains("more than 10000 layers"), "{}", error.report());
    }
}

isolated_test! {
    fn a_file_cut_short_while_it_is_open_is_an_error_and_never_zeros() {
        let Some(guest) = Guest::new() else { return };
        let gate = Gate::open(&guest.root(), FilePool::new(16)).unwrap();
        let disk = open(&gate, "c.qcow2").unwrap();
        let mut buf = [0; 4096];
        assert_eq!(disk.read_at(&mut buf, GuestOffset(0)).unwrap(), 4096);
        assert_eq!(buf, [7; 4096]);
        let file = std::fs::OpenOptions::new().write(true).open(guest.file("c.qcow2")).unwrap();
        file.set_len(300_000).unwrap();
        let error = disk.read_at(&mut buf, GuestOffset(65536)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{}", error.report());
        assert!(error.report().contains("'c.qcow2'"), "{}", error.report());
    }
}

isolated_test! {
    fn a_layer_replaced_while_it_is_open_goes_on_being_read_as_it_was() {
        let Some(guest) = Guest::new() else { return };
        let gate = Gate::open(&guest.root(), FilePool::new(16)).unwrap();
        let disk = open(&gate, "c.qcow2").unwrap();
        std::fs::write(guest.file("new"), "something else").unwrap();
        std::fs::rename(guest.file("new"), guest.file("c.qcow2")).unwrap();
        let mut buf = [0; 4096];
        disk.read_at(&mut buf, GuestOffset(0)).unwrap();
        assert_eq!(buf, [7; 4096]);
        assert!(open(&gate, "c.qcow2").is_err());
    }
}

isolated_test! {
    fn a_broken_head_does_not_keep_its_backing_layers_from_being_read() {
        let Some(guest) = Guest::new() else { return };
        guest.replace("c.qcow2", |c| std::fs::write(c, "rubbish").unwrap());
        let gate = Gate::open(&guest.root(), FilePool::new(16)).unwrap();
        assert!(open(&gate, "c.qcow2").is_err());
        assert_eq!(open(&gate, "b.qcow2").unwrap().layers().next().unwrap().path, path("b.qcow2"));
    }
}
