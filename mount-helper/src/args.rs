//! The words that mount(8) calls a helper with: `mount.annals SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

pub(crate) const USAGE: &str = "usage: mount.annals STORE MOUNTPOINT [-sfnv] [-N namespace] [-o options] [-t type]";

/// The type under which the mount appears, and the name that fstab uses.
const TYPES: [&str; 2] = ["annals", "fuse.annals"];

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Words {
    Help,
    Version,
    Mount(Request),
}

/// A mount as mount(8) asks for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) store: OsString,
    pub(crate) target: OsString,
    /// The options as given, still with commas; several `-o` are joined.
    pub(crate) options: OsString,
    /// `-s`: leave unknown options out instead of refusing them.
    pub(crate) sloppy: bool,
    /// `-f`: everything but the mount.
    pub(crate) fake: bool,
    pub(crate) verbose: bool,
    /// `-N`: the mount namespace to mount in.
    pub(crate) namespace: Option<OsString>,
}

/// Reads the words after the program's name. The error says which word is wrong.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Words, String> {
    let mut request = Request::default();
    let mut places = Vec::new();
    let mut only_places = false;
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if only_places || bytes == b"-" || !bytes.starts_with(b"-") {
            places.push(word);
            continue;
        }
        match bytes {
            b"--" => only_places = true,
            b"--help" => return Ok(Words::Help),
            b"--version" => return Ok(Words::Version),
            [b'-', b'-', ..] => return Err(format!("unknown option {}", word.display())),
            [_, flags @ ..] => read_flags(&mut request, flags, &mut words)?,
            [] => {}
        }
    }
    let [store, target] = <[OsString; 2]>::try_from(places)
        .map_err(|places| format!("a store and a mount point are needed, {} given", places.len()))?;
    if store.is_empty() || target.is_empty() {
        return Err("the store or the mount point is an empty word".to_owned());
    }
    Ok(Words::Mount(Request { store, target, ..request }))
}

/// One word of single-letter flags, such as `-fv`, `-o ro` or `-oro`.
fn read_flags(request: &mut Request, flags: &[u8], words: &mut impl Iterator<Item = OsString>) -> Result<(), String> {
    let mut flags = flags.iter();
    while let Some(&flag) = flags.next() {
        match flag {
            b's' => request.sloppy = true,
            b'f' => request.fake = true,
            b'v' => request.verbose = true,
            // There is no mtab to leave alone.
            b'n' => {}
            b'o' | b'N' | b't' => {
                let attached = flags.as_slice();
                let value = if attached.is_empty() {
                    words.next().ok_or_else(|| format!("-{} needs a value", char::from(flag)))?
                } else {
                    OsString::from_vec(attached.to_vec())
                };
                return read_value(request, flag, &value);
            }
            other => return Err(format!("unknown option -{}", other.escape_ascii())),
        }
    }
    Ok(())
}

fn read_value(request: &mut Request, flag: u8, value: &OsStr) -> Result<(), String> {
    match flag {
        b'o' => {
            if !request.options.is_empty() {
                request.options.push(",");
            }
            request.options.push(value);
        }
        b'N' => request.namespace = Some(value.to_owned()),
        _ => {
            if !TYPES.iter().any(|known| value == OsStr::new(known)) {
                return Err(format!("the type {} is not annals", value.display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Words, String> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    fn request(line: &str) -> Request {
        match read(line) {
            Ok(Words::Mount(request)) => request,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_calling_convention_of_mount_8_is_understood() {
        let got = request("/srv/store /mnt -s -f -n -v -o rw,allow_other -t fuse.annals -N /proc/7/ns/mnt");
        let wanted = Request {
            store: "/srv/store".into(),
            target: "/mnt".into(),
            options: "rw,allow_other".into(),
            sloppy: true,
            fake: true,
            verbose: true,
            namespace: Some("/proc/7/ns/mnt".into()),
        };
        assert_eq!(got, wanted);
    }

    #[test]
    fn flags_may_be_bundled_options_attached_and_repeated_and_stand_anywhere() {
        let got = request("-fvoro -o allow_other /srv/store /mnt");
        assert!(got.fake && got.verbose);
        assert_eq!(got.options, "ro,allow_other");
        assert_eq!(request("-- -s -m").store, "-s");
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, named) in [
            ("/srv/store", "1 given"),
            ("a b c", "3 given"),
            ("a b -x", "-x"),
            ("a b --wat", "--wat"),
            ("a b -o", "-o needs a value"),
            ("a b -t nfs", "nfs"),
        ] {
            let problem = read(line).expect_err(line);
            assert!(problem.contains(named), "{line}: {problem}");
        }
        assert!(parse(vec!["".into(), "b".into()]).is_err());
        assert_eq!(read("--help"), Ok(Words::Help));
        assert_eq!(read("--version"), Ok(Words::Version));
    }
}
