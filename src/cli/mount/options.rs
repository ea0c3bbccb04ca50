//! The words after `-o`, as `mount -o` and fstab have them.

use std::path::PathBuf;

use crate::base::{Error, ErrorKind, Result};
use crate::fs::Ownership;
use crate::fuse::Access;

/// What the words say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Options {
    pub(super) access: Access,
    pub(super) ownership: Ownership,
    pub(super) no_exec: bool,
    /// Whether the mountpoint may have files in it, which the mount hides.
    pub(super) non_empty: bool,
    /// In bytes.
    pub(super) cache_size: Option<u64>,
    pub(super) log_file: Option<PathBuf>,
}

/// Words that say what is so anyway, or that speak to mount(8) and systemd alone.
const WITHOUT_EFFECT: [&str; 22] = [
    "ro",
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "nosuid",
    "nodev",
    "async",
    "exec",
    "noatime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "silent",
    "default_permissions",
];

/// Starts of such words.
const WITHOUT_EFFECT_STARTS: [&str; 4] = ["x-", "X-", "comment=", "user="];

impl Options {
    /// Reads `lists`, each of words with commas between; a later word overrides an earlier one. An unknown word is an
    /// error that names it.
    pub(super) fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Self> {
        let mut options = Self::default();
        let (mut everyone, mut root) = (false, false);
        let words = lists.iter().flat_map(|list| list.as_ref().split(',')).map(str::trim);
        for word in words.filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                None => match word {
                    "allow_other" => everyone = true,
                    "allow_root" => root = true,
                    "noexec" => options.no_exec = true,
                    "nonempty" => options.non_empty = true,
                    "rw" => {
                        return Err(refused(word, "the mount is read-only").with_hint("leave it out, or say ro"));
                    }
                    "suid" | "dev" => {
                        return Err(refused(word, "the mount is always nosuid and nodev").with_hint("leave it out"));
                    }
                    _ => passes(word)?,
                },
                Some(("uid", value)) => options.ownership.uid = number(word, value)?,
                Some(("gid", value)) => options.ownership.gid = number(word, value)?,
                Some(("umask", value)) => options.ownership.umask = umask(word, value)?,
                Some(("cache_size", value)) => options.cache_size = Some(size(value).map_err(|e| e.context(word))?),
                Some(("log_file", "")) => return Err(refused(word, "it names no file")),
                Some(("log_file", value)) => options.log_file = Some(value.into()),
                Some(_) => passes(word)?,
            }
        }
        options.access = match (everyone, root) {
            (true, true) => return Err(refused("allow_root", "allow_other lets everybody in already")),
            (true, false) => Access::Everyone,
            (false, true) => Access::Root,
            (false, false) => Access::Owner,
        };
        Ok(options)
    }
}

fn passes(word: &str) -> Result<()> {
    if WITHOUT_EFFECT.contains(&word) || WITHOUT_EFFECT_STARTS.iter().any(|start| word.starts_with(start)) {
        return Ok(());
    }
    Err(refused(word, "there is no such option").with_hint(
        "options are allow_other, allow_root, uid=, gid=, umask=, noexec, nonempty, cache_size= and log_file=, and those of mount(8) and \
         systemd.mount(5) that do not ask for changes",
    ))
}

fn refused(word: &str, why: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("mount option '{}': {why}", word.escape_debug()))
}

fn number(word: &str, value: &str) -> Result<u32> {
    // `+5` is a number to the parser, and -1 (as 2^32 - 1) is "no change" to the kernel.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|number| digits && *number != u32::MAX);
    number.ok_or_else(|| refused(word, "not the number of a user or group"))
}

fn umask(word: &str, value: &str) -> Result<u16> {
    let digits = !value.is_empty() && value.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mask = u16::from_str_radix(value, 8).ok().filter(|mask| digits && *mask <= 0o777);
    mask.ok_or_else(|| refused(word, "not an octal number from 0 to 777"))
}

/// A number of bytes with an optional unit, K, M, G or T for powers of 1024: `64M`.
pub(super) fn size(text: &str) -> Result<u64> {
    let bad = || Error::new(ErrorKind::Usage, format!("'{}' is not a size", text.escape_debug()));
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(bad().with_hint("give bytes, or a number with K, M, G or T: 64M")),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(list: &str) -> Result<Options> {
        Options::parse(&[list])
    }

    #[test]
    fn words_of_mount_and_systemd_change_nothing() {
        let fstab = "defaults,ro,noauto,user,users,_netdev,nofail,nosuid,nodev,exec,relatime,x-systemd.automount,\
                     x-systemd.idle-timeout=60,X-mount.mkdir,comment=backups,user=bob";
        assert_eq!(parse(fstab).unwrap(), Options::default());
        assert_eq!(parse("").unwrap(), Options::default());
        assert_eq!(parse(",,").unwrap(), Options::default());
    }

    #[test]
    fn every_option_of_ours_is_read() {
        let options =
            Options::parse(&["allow_other,uid=1000", "gid=4,umask=027,noexec,nonempty,cache_size=1G,log_file=/l"]);
        let options = options.unwrap();
        assert_eq!(options.access, Access::Everyone);
        assert_eq!(options.ownership, Ownership { uid: 1000, gid: 4, umask: 0o027 });
        assert!(options.no_exec && options.non_empty);
        assert_eq!(options.cache_size, Some(1 << 30));
        assert_eq!(options.log_file, Some("/l".into()));
        assert_eq!(parse("allow_root").unwrap().access, Access::Root);
        assert_eq!(parse("uid=1,uid=2").unwrap().ownership.uid, 2);
    }

    #[test]
    fn what_is_not_meant_for_this_mount_is_refused_by_name() {
        for bad in [
            "rw",
            "suid",
            "dev",
            "allow_everybody",
            "ro=1",
            "uid=",
            "uid=root",
            "uid=-1",
            "uid=+1",
            "uid=4294967295",
            "uid=4294967296",
            "umask=8",
            "umask=1000",
            "umask=",
            "umask=+7",
            "cache_size=x",
            "cache_size=",
            "log_file=",
            "subtype=evil",
            "fsname=evil",
            "fd=3",
            "remount",
        ] {
            let error = parse(&format!("ro,{bad}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
            assert!(error.report().contains(bad), "'{}' does not name {bad}", error.report());
        }
        assert!(parse("allow_other,allow_root").is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("0").unwrap(), 0);
        assert_eq!(size("64M").unwrap(), 64 << 20);
        assert_eq!(size("2g").unwrap(), 2 << 30);
        for bad in ["", "M", "-1", "+1", "1.5G", "64MB", "1 G", "99999999999T", "１K"] {
            assert_eq!(size(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}") {
            let _ = parse(&text);
            let _ = size(&text);
        }
    }
}
