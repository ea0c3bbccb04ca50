//! Which of the options that mount(8) hands over are its own, which are the mount's, and which are neither.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::known::{ANNALS, CONTRARY, OWN, OWN_PREFIXES, WITHOUT_EFFECT};

/// The options after sorting, each as it was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// For `annals mount -o`.
    pub(crate) passed: Vec<OsString>,
    /// Neither mount(8)'s nor ours.
    pub(crate) unknown: Vec<OsString>,
}

impl Sorted {
    /// What is passed on, in the form of one `-o`; nothing where nothing is.
    pub(crate) fn joined(&self) -> Option<OsString> {
        (!self.passed.is_empty()).then(|| self.passed.join(OsStr::new(",")))
    }

    /// The unknown ones as a message names them: `'a', 'b'`.
    pub(crate) fn unknown_named(&self) -> String {
        let quoted: Vec<String> = self.unknown.iter().map(|option| format!("'{}'", name(option).display())).collect();
        quoted.join(", ")
    }
}

/// Sorts a list with commas. The error names an option that is understood and refused.
pub(crate) fn sort(options: &OsStr) -> Result<Sorted, String> {
    let mut sorted = Sorted::default();
    for option in options.as_bytes().split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        let option = OsString::from_vec(option.to_vec());
        let name = name(&option);
        let is = |known: &&str| name == OsStr::new(known);
        if let Some((refused, why)) = CONTRARY.iter().find(|(known, _)| is(known)) {
            return Err(format!("option '{refused}' is refused: {why}"));
        }
        if ANNALS.iter().any(is) {
            sorted.passed.push(option);
        } else if !OWN.iter().chain(&WITHOUT_EFFECT).any(is)
            && !OWN_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
        {
            sorted.unknown.push(option);
        }
    }
    Ok(sorted)
}

/// An option without its value.
fn name(option: &OsStr) -> &OsStr {
    let bytes = option.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    OsStr::from_bytes(bytes.get(..end).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(options: &str) -> (String, String) {
        let sorted = sort(options.as_ref()).expect(options);
        (sorted.joined().unwrap_or_default().into_string().unwrap(), sorted.unknown_named())
    }

    #[test]
    fn what_is_mount_8s_own_is_dropped() {
        for own in [
            "rw,user,noauto,nofail,_netdev",
            "x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir=0755",
            "user=alice,uhelper=fuse,comment=a=b,defaults,users,owner,group,auto",
            "noatime,relatime,async,exec,silent",
            ",,",
            "",
        ] {
            assert_eq!(sorted(own), (String::new(), String::new()), "{own}");
        }
    }

    #[test]
    fn what_is_the_mounts_is_passed_on_in_its_order() {
        assert_eq!(
            sorted("rw,nosuid,user,nodev,noexec,allow_other,cache_size=64M,uid=1000").0,
            "nosuid,nodev,noexec,allow_other,cache_size=64M,uid=1000"
        );
    }

    #[test]
    fn every_unknown_option_is_named_without_its_value() {
        assert_eq!(
            sorted("ro,alow_other,password=secret,y-x"),
            ("ro".into(), "'alow_other', 'password', 'y-x'".into())
        );
    }

    #[test]
    fn what_a_mount_of_annals_never_does_is_refused_with_the_reason() {
        for contrary in ["suid", "dev", "remount", "loop=/dev/loop0"] {
            let problem = sort(format!("ro,{contrary}").as_ref()).expect_err(contrary);
            assert!(problem.contains(&contrary[..3]), "{problem}");
        }
    }

    #[test]
    fn an_option_that_is_not_utf_8_is_kept_byte_for_byte() {
        let sorted = sort(OsStr::from_bytes(b"ro,\xff")).unwrap();
        assert_eq!(sorted.unknown, [OsStr::from_bytes(b"\xff")]);
    }
}
