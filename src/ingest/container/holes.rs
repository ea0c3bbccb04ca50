//! Whether the map of a sparse file's holes, which GNU tar made, is that of the whole file.
//!
//! Where tar cannot ask the system for holes it looks for zeros, and takes an error of that reading for the end of the file, without
//! a word; where the system fails to answer half-way, tar's map contradicts itself. A map that is whole reaches to the file's size.

use crate::format::tar::{Extent, MapReader};

/// A member that the archive may hold with zeros, or with nothing, where its file has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Its name, as the archive has it.
    pub(super) name: Vec<u8>,
    /// The byte of the file from which on; none where the map is good for nothing.
    pub(super) from: Option<u64>,
}

/// Reads the map of one member while that goes by.
#[derive(Debug)]
pub(super) struct MapCheck {
    name: Vec<u8>,
    size: u64,
    map: MapReader,
    /// Where the last extent ended.
    end: u64,
}

/// What is known of a map.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// It goes on.
    NotYet,
    /// It is that of the whole file.
    Whole,
    /// It is not.
    Doubtful(Doubt),
}

impl MapCheck {
    /// The check of the member `name`, whose file has `size` bytes.
    pub(super) fn new(name: Vec<u8>, size: u64) -> Self {
        Self { name, size, map: MapReader::new(u64::MAX), end: 0 }
    }

    /// Takes what comes next of the member's data.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Checked {
        let ended = self.map.take(bytes);
        let mut end = Some(self.end);
        for Extent { offset, len } in self.map.drain() {
            end = end.filter(|end| offset >= *end).and_then(|_| offset.checked_add(len));
        }
        // No file is longer.
        let end = end.filter(|end| i64::try_from(*end).is_ok());
        match (ended, end) {
            (Err(_), _) | (_, None) => self.doubtful(None),
            (Ok(true), Some(end)) if end < self.size => self.doubtful(Some(end)),
            (Ok(true), Some(_)) => Checked::Whole,
            (Ok(false), Some(end)) => {
                self.end = end;
                Checked::NotYet
            }
        }
    }

    fn doubtful(&mut self, from: Option<u64>) -> Checked {
        Checked::Doubtful(Doubt { name: std::mem::take(&mut self.name), from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(map: &str, size: u64) -> Checked {
        let mut check = MapCheck::new(b"a".to_vec(), size);
        let (last, before) = map.as_bytes().split_last().unwrap();
        for byte in before {
            match check.take(&[*byte]) {
                Checked::NotYet => {}
                known => return known,
            }
        }
        check.take(&[*last])
    }

    fn doubtful(from: Option<u64>) -> Checked {
        Checked::Doubtful(Doubt { name: b"a".to_vec(), from })
    }

    #[test]
    fn a_map_is_whole_when_it_reaches_to_the_end_of_its_file() {
        assert_eq!(checked("1\n0\n1000\n", 1000), Checked::Whole);
        assert_eq!(checked("2\n0\n512\n1000\n0\n", 1000), Checked::Whole, "one that ends with a hole");
        assert_eq!(checked("1\n1000\n0\n", 1000), Checked::Whole, "nothing but a hole");
        // Its file grew; tar says so itself.
        assert_eq!(checked("1\n0\n2000\n", 1000), Checked::Whole);
        assert_eq!(checked("2\n0\n512\n", 1000), Checked::NotYet);
    }

    #[test]
    fn a_map_that_ends_before_its_file_does_or_contradicts_itself_is_doubtful() {
        assert_eq!(checked("1\n0\n512\n", 1000), doubtful(Some(512)));
        assert_eq!(checked("0\n", 1000), doubtful(Some(0)));
        assert_eq!(checked("3\n0\n512\n600\n100\n512\n488\n", 1000), doubtful(None), "backwards");
        // As GNU tar 1.34 writes it where the system answers no more.
        let map = "4\n0\n65536\n131072\n65536\n262144\n18446744073709289471\n0\n786432\n";
        assert_eq!(checked(map, 1 << 20), doubtful(None));
        assert_eq!(checked("1\nx\n1\n", 1000), doubtful(None));
    }
}
