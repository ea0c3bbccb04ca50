//! GNU tar: the words it is started with, and the lines that it answers with.

use std::path::Path;
use std::process::Command;

use crate::ingest::program::Program;

/// The program that reads a container's tree.
pub(super) const TAR: Program = Program { name: "tar", package: "tar" };

/// The top of a filled file system; never anybody's data.
const ALWAYS_EXCLUDED: &str = "lost+found";

/// Adds what makes an archive of `tree` on `command`'s standard output, or, with `only_list`, makes tar walk the tree by the same
/// rules and read no file.
///
/// Each pattern is one of the caller's; one that starts with a slash is anchored at the top of the tree.
pub(super) fn arguments(command: &mut Command, tree: &Path, excludes: &[String], only_list: bool) {
    command.args(["--create", "--file", if only_list { "/dev/null" } else { "-" }]);
    // POSIX keeps nanoseconds, ids and sizes of any length, attributes, and the map of a file's holes.
    command.args(["--format=posix", "--sparse", "--numeric-owner", "--one-file-system"]);
    command.args(["--acls", "--xattrs", "--xattrs-include=*"]);
    // A name is told in one line, whatever is in it.
    command.args(["--verbose", "--verbose", "--quoting-style=escape", "--blocking-factor=128"]);
    command.args(["--wildcards", "--wildcards-match-slash", "--no-anchored"]);
    command.arg(format!("--exclude={ALWAYS_EXCLUDED}"));
    // All are anchored at the dot that tar is told to begin at. To it that is a name like any other, which a pattern that may begin
    // anywhere would match as well.
    command.arg("--anchored");
    for pattern in excludes {
        match pattern.strip_prefix('.').unwrap_or(pattern) {
            anchored if anchored.starts_with('/') => command.arg(format!("--exclude=.{anchored}")),
            _ => command.arg(format!("--exclude=./{pattern}")).arg(format!("--exclude=./*/{pattern}")),
        };
    }
    let mut directory = std::ffi::OsString::from("--directory=");
    directory.push(tree);
    command.arg(directory).args(["--", "."]);
}

/// `path`, beneath the tree's top, as a pattern that matches itself alone.
pub(super) fn literal_pattern(path: &str) -> String {
    let mut pattern = String::from("/");
    path.chars().for_each(|c| push_literal(&mut pattern, c));
    pattern
}

fn push_literal(pattern: &mut String, c: char) {
    if matches!(c, '*' | '?' | '[' | ']' | '\\') {
        pattern.push('\\');
    }
    pattern.push(c);
}

/// The words that leave the member `name` out of the next backup, as a shell takes them.
///
/// A byte that may not look like itself on a terminal, or is no text, is matched by a `?`.
pub(super) fn exclude_argument(name: &[u8]) -> String {
    let mut pattern = String::from("/");
    let unmatched = |pattern: &mut String, bytes: usize| pattern.extend(std::iter::repeat_n('?', bytes));
    for part in name.strip_prefix(b"./").unwrap_or(name).utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                // Within quotes of a shell, the only one that is not itself.
                '\'' => unmatched(&mut pattern, 1),
                ' '..='~' => push_literal(&mut pattern, c),
                c if c.is_alphanumeric() => pattern.push(c),
                c => unmatched(&mut pattern, c.len_utf8()),
            }
        }
        unmatched(&mut pattern, part.invalid().len());
    }
    format!("--exclude '{}'", pattern.trim_end_matches('/'))
}

/// One line that tar says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A member that it begins with.
    Member(Listed<'a>),
    /// Something about one.
    Said(&'a str),
}

/// A member as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed<'a> {
    /// Whether it is one more name of a member that was listed before.
    pub(super) is_link: bool,
    /// Whether it has a POSIX ACL.
    pub(super) has_acl: bool,
    /// Bytes of a regular file, its holes included.
    pub(super) size: u64,
    /// Its name as tar writes it.
    pub(super) name: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        listed(line).map_or(Self::Said(line), Self::Member)
    }
}

/// `-rw-r--r--+ 1000/1000  5 2024-11-07 16:51 ./a`: mode, owner, size or device number, time, name.
fn listed(line: &str) -> Option<Listed<'_>> {
    let (mode, rest) = line.split_once(' ')?;
    if !matches!(mode.len(), 10 | 11) || !mode.starts_with(['-', 'd', 'l', 'h', 'c', 'b', 'p', 's', 'C']) {
        return None;
    }
    let (_, rest) = rest.trim_start().split_once(' ')?;
    let (size, rest) = rest.trim_start().split_once(' ')?;
    // A name starts with the dot that tar was told to begin at; a time has no such thing.
    let name = rest.get(rest.find(" .")?.checked_add(1)?..)?;
    let is_file = mode.starts_with(['-', 'C']);
    Some(Listed {
        is_link: mode.starts_with('h'),
        has_acl: mode.ends_with('+'),
        size: if is_file { size.parse().ok()? } else { 0 },
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_from_what_is_said_about_them() {
        let parse = |line| match Line::parse(line) {
            Line::Member(listed) => Some((listed.is_link, listed.has_acl, listed.size, listed.name)),
            Line::Said(_) => None,
        };
        assert_eq!(parse("drwxr-xr-x+ 0/0               0 2026-11-21 14:50 ./"), Some((false, true, 0, "./")));
        assert_eq!(
            parse("-rw-r--r--  4000000000/3000000001 77 1969-12-31 23:59 ./a b\\n"),
            Some((false, false, 77, "./a b\\n"))
        );
        assert_eq!(parse("brw-r--r-- 0/0             8,0 2026-11-21 14:50 ./sda"), Some((false, false, 0, "./sda")));
        assert_eq!(
            parse("hrw-r--r--  0/0               0 2026-11-21 14:50 ./b link to ./a"),
            Some((true, false, 0, "./b link to ./a"))
        );
        // A time that tar cannot write as a date.
        assert_eq!(parse("-rw-r--r-- 0/0 5 67768036191676799 ./x"), Some((false, false, 5, "./x")));
        for said in ["tar: ./s: socket ignored", "", "tar: -rw-r--r-- 0/0 5 x ./x", "-rw-r--r-- 0/0 5"] {
            assert_eq!(parse(said), None, "{said}");
        }
    }

    #[test]
    fn a_path_as_a_pattern_matches_nothing_but_itself() {
        assert_eq!(literal_pattern("srv/b*[1]?\\"), "/srv/b\\*\\[1\\]\\?\\\\");
    }

    #[test]
    fn what_leaves_a_member_out_can_be_given_to_a_shell_as_it_is() {
        for (name, argument) in [
            (b"./db/main 1".as_slice(), "--exclude '/db/main 1'"),
            (b"./a*'b", "--exclude '/a\\*?b'"),
            ("./gr\u{f6}\u{df}e\n\u{202e}".as_bytes(), "--exclude '/gr\u{f6}\u{df}e????'"),
            (b"./\xff-$(reboot)", "--exclude '/?-$(reboot)'"),
        ] {
            assert_eq!(exclude_argument(name), argument);
        }
    }
}
