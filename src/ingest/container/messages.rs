//! What GNU tar says about members, and what that means for the backup.
//!
//! Names are anybody's. With `--quoting-style=escape`, tar puts a backslash before the colons and backslashes of a name in its messages,
//! and has every byte that is no plain character as a sequence of its own; so the first colon without one ends the name, and what
//! follows is tar's.

/// How tar's words begin when it could not read attributes.
const ABOUT_ATTRIBUTES: &str = "Warning: Cannot ";

/// What something that tar said means for the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Left out on purpose.
    Note,
    /// It changed while it was read.
    Changed,
    /// It could not be opened, or looked at, and is left out with what may be in it.
    Unreadable,
    /// It is there, but for attributes that could not be read.
    Attributes,
    /// So many bytes at its end could not be had; zeros stand for them. Tar calls this shrunk, whatever the reason.
    Padded(u64),
    /// It could not be read from this byte on; zeros stand for the rest.
    ReadError(u64),
    /// Whatever else: the archive is not what it should be.
    Error,
    /// Nothing: the last line after errors, and that a file has no attributes because its file system knows none.
    Nothing,
}

/// A line of tar's, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// The member, as tar spells it; empty where the line is about none.
    pub(super) name: &'a str,
    pub(super) meaning: Meaning,
}

impl<'a> Message<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let unnamed = |meaning| Self { name: "", meaning };
        if line == "tar: Exiting with failure status due to previous errors" {
            return unnamed(Meaning::Nothing);
        }
        let Some((name, text)) = line.strip_prefix("tar: ").and_then(split_name) else {
            return unnamed(Meaning::Error);
        };
        let below_top = name.strip_prefix("./").is_some_and(|below| !below.is_empty());
        let meaning = match meaning_of(text) {
            // What is said of attributes has the last of a path's names alone.
            meaning if below_top || text.starts_with(ABOUT_ATTRIBUTES) => meaning,
            meaning @ (Meaning::Note | Meaning::Changed) if matches!(name, "." | "./") => meaning,
            // Without the top of the tree there is no backup.
            _ => Meaning::Error,
        };
        Self { name, meaning }
    }
}

/// A name as tar spells it, and what is said of it.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    let (name, rest) = text.split_at_checked(end)?;
    Some((name, rest.strip_prefix(": ")?))
}

fn meaning_of(text: &str) -> Meaning {
    match text {
        "socket ignored" | "door ignored" | "file is on a different filesystem; not dumped" => return Meaning::Note,
        "file changed as we read it" | "File removed before we read it" => return Meaning::Changed,
        _ => {}
    }
    if let Some(rest) = text.strip_prefix("File shrank by ") {
        let by = rest.strip_suffix(" bytes; padding with zeros").or(rest.strip_suffix(" byte; padding with zeros"));
        return by.and_then(|by| by.parse().ok()).map_or(Meaning::Error, Meaning::Padded);
    }
    if let Some(rest) = text.strip_prefix("Read error at byte ") {
        let at = rest.split_once(',').and_then(|(at, _)| at.parse().ok());
        return at.map_or(Meaning::Error, Meaning::ReadError);
    }
    if let Some((function, reason)) = text.strip_prefix(ABOUT_ATTRIBUTES).and_then(|rest| rest.split_once(": ")) {
        let known = function.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && is_about_the_file(reason);
        return match (known, reason) {
            // It was listed, and is gone.
            (true, "No data available") => Meaning::Changed,
            (true, "Operation not supported") => Meaning::Nothing,
            (true, _) => Meaning::Attributes,
            (false, _) => Meaning::Error,
        };
    }
    match text.strip_prefix("Cannot ").and_then(|rest| rest.split_once(": ")) {
        Some(("open" | "stat" | "savedir" | "readlink", reason)) if is_about_the_file(reason) => Meaning::Unreadable,
        Some(_) | None => Meaning::Error,
    }
}

/// Whether an error of the system is the file's, and not one that any other file would have met as well.
fn is_about_the_file(reason: &str) -> bool {
    !matches!(reason, "" | "Too many open files" | "Too many open files in system" | "Cannot allocate memory")
}

/// The bytes of a name that tar spells like this.
pub(super) fn unescaped(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let octal = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = rest.get(3..).unwrap_or_default();
            continue;
        }
        let Some((sign, after)) = rest.split_first() else { break };
        rest = after;
        bytes.push(match sign {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            other => *other,
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_that_is_known_has_its_meaning_and_every_other_one_is_an_error() {
        use Meaning::{Attributes, Changed, Error, Note, Nothing, Padded, ReadError, Unreadable};
        for (said, meaning) in [
            ("tar: ./s: socket ignored", Note),
            ("tar: ./proc/: file is on a different filesystem; not dumped", Note),
            ("tar: ./log: file changed as we read it", Changed),
            ("tar: ./: file changed as we read it", Changed),
            ("tar: ./x: File removed before we read it", Changed),
            ("tar: x: Warning: Cannot fgetxattrat: No data available", Changed),
            ("tar: x: Warning: Cannot flistxattr: Input/output error", Attributes),
            ("tar: x: Warning: Cannot flistxattr: Operation not supported", Nothing),
            ("tar: x: Warning: Cannot flistxattr: Cannot allocate memory", Error),
            ("tar: x: Warning: Cannot do this: Input/output error", Error),
            ("tar: ./log: File shrank by 5 bytes; padding with zeros", Padded(5)),
            ("tar: ./log: File shrank by 1 byte; padding with zeros", Padded(1)),
            ("tar: ./log: File shrank by 1 byte; padding with love", Error),
            ("tar: ./log: Read error at byte 512, while reading 10240 bytes: Input/output error", ReadError(512)),
            ("tar: ./x: Cannot stat: No such file or directory", Unreadable),
            ("tar: ./x: Cannot open: Permission denied", Unreadable),
            ("tar: ./x/: Cannot savedir: Input/output error", Unreadable),
            ("tar: ./x: Cannot readlink: Stale file handle", Unreadable),
            ("tar: ./x: Cannot open: Too many open files", Error),
            ("tar: ./x: Cannot open", Error),
            ("tar: ./x: Cannot seek to 512: Invalid argument", Error),
            ("tar: ./x: Cannot close: Input/output error", Error),
            ("tar: ./x: Unknown file type; file ignored", Error),
            ("tar: .: Cannot stat: Permission denied", Error),
            ("tar: ./: Cannot savedir: Input/output error", Error),
            ("tar: /tree: Cannot open: Permission denied", Error),
            ("tar: -: Cannot write: No space left on device", Error),
            ("tar: POSIX ACL support is not available", Error),
            ("./x: Cannot open: Permission denied", Error),
            ("", Error),
            ("tar: Exiting with failure status due to previous errors", Nothing),
        ] {
            assert_eq!(Message::parse(said).meaning, meaning, "{said}");
        }
    }

    #[test]
    fn a_name_that_sounds_like_a_message_is_still_a_name() {
        for (said, name, meaning) in [
            ("tar: ./a\\: socket ignored: Cannot write: Broken pipe", "./a: socket ignored", Meaning::Error),
            (
                "tar: ./a\\: Cannot open\\: Permission denied: No more",
                "./a: Cannot open: Permission denied",
                Meaning::Error,
            ),
            ("tar: ./a\\\\: Cannot open: Permission denied", "./a\\", Meaning::Unreadable),
            ("tar: ./a\\\\\\: x: Cannot open: Permission denied", "./a\\: x", Meaning::Unreadable),
            ("tar: ./a\\ntar\\: ./b\\: socket ignored: Bad luck", "./a\ntar: ./b: socket ignored", Meaning::Error),
        ] {
            let message = Message::parse(said);
            assert_eq!((unescaped(message.name), message.meaning), (name.as_bytes().to_vec(), meaning), "{said}");
        }
        // A backslash at the end of all, and one that only looks like the start of a sequence.
        assert_eq!(unescaped("a\\"), b"a");
        assert_eq!(unescaped("\\377\\303\\244\\9\\t"), b"\xff\xc3\xa49\t");
    }
}
