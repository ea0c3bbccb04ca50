//! Paths beneath a directory, which cannot name anything outside it.

use std::fmt;
use std::sync::Arc;

use crate::base::{Error, ErrorKind, Result};

/// A path of plain names below a guest's or store's directory: never empty, never absolute, without `.`, `..`, NUL or empty names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Arc<str>);

/// Longest path that Linux opens, with its closing NUL.
const PATH_MAX: usize = 4096;

impl RelPath {
    /// Takes `path` as it stands; refuses whatever is not already plain.
    pub fn new(path: &str) -> Result<Self> {
        if path.len() >= PATH_MAX || path.contains('\0') {
            return Err(refused(path, "it is too long or holds a NUL byte"));
        }
        match path.split('/').find(|name| matches!(*name, "" | "." | "..")) {
            Some(_) => Err(refused(path, "it is not a plain relative path")),
            None => Ok(Self(path.into())),
        }
    }

    /// `name`, relative to the directory that holds `self`, with `.` and `..` worked out.
    ///
    /// Refuses a name that leaves the root, wherever it would come back in.
    pub fn sibling(&self, name: &str) -> Result<Self> {
        if matches!(name.rsplit('/').next(), None | Some("" | "." | "..")) {
            return Err(refused(name, "it names a directory"));
        }
        let mut parts: Vec<&str> = self.0.split('/').collect();
        parts.pop();
        for part in name.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Err(refused(name, "it leads out of the guest's directory"));
                    }
                }
                plain => parts.push(plain),
            }
        }
        Self::new(&parts.join("/"))
    }

    /// `self/name`.
    pub fn join(&self, name: &str) -> Result<Self> {
        Self::new(&format!("{}/{name}", self.0))
    }

    /// The last name.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The name of the directory that holds it, or `None` at the root.
    #[must_use]
    pub fn parent_name(&self) -> Option<&str> {
        self.0.rsplit('/').nth(1)
    }

    /// As text, with `/` between names.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("the name '{}' may not be opened: {why}", path.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_name_is_worked_out_from_the_image_that_holds_it() {
        let image = RelPath::new("qemu-2/drive.qcow2").unwrap();
        assert_eq!(image.sibling("../qemu-1/drive.qcow2").unwrap().as_str(), "qemu-1/drive.qcow2");
        assert_eq!(image.sibling("base.qcow2").unwrap().as_str(), "qemu-2/base.qcow2");
        assert_eq!(image.parent_name(), Some("qemu-2"));
        assert_eq!(RelPath::new("a").unwrap().parent_name(), None);
    }

    #[test]
    fn no_name_leads_out_even_when_it_comes_back() {
        let image = RelPath::new("qemu-2/drive.qcow2").unwrap();
        for out in ["../../etc/passwd", "../../100/qemu-1/drive.qcow2", "..", ".", ""] {
            assert_eq!(image.sibling(out).unwrap_err().kind(), ErrorKind::Refused, "{out}");
        }
        for not_plain in ["", "/a", "a//b", "a/../b", "a/.", "a\0b"] {
            assert!(RelPath::new(not_plain).is_err(), "{not_plain:?}");
        }
    }
}
