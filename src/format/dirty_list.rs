//! Lists of dirty ranges as text: a line `OFFSET LENGTH` each, in bytes, decimal or with `0x`.

use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};

/// Most bytes of such a list that are taken.
pub const SIZE_LIMIT: usize = 256 << 20;

/// Parses a list for a disk of `size` bytes: sorted, without overlaps, neighbours joined.
///
/// Empty lines and what follows a `#` are passed over; lines may be in any order and overlap. Errors, of kind `Usage`, name the line.
pub fn parse(text: &[u8], size: u64) -> Result<Vec<GuestRange>> {
    let text =
        std::str::from_utf8(text).map_err(|_| Error::new(ErrorKind::Usage, "the list of dirty ranges is not text"))?;
    let mut ranges = Vec::new();
    for (line, number) in text.lines().zip(1_u64..) {
        let bad = |why: &str| Err(Error::new(ErrorKind::Usage, format!("line {number} of the dirty ranges: {why}")));
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (offset, length) = match (words.next(), words.next(), words.next()) {
            (None, _, _) => continue,
            (Some(offset), Some(length), None) => (number_of(offset), number_of(length)),
            _ => return bad("it is not OFFSET LENGTH"),
        };
        let (Some(offset), Some(length)) = (offset, length) else { return bad("it is not two numbers of bytes") };
        match GuestRange::new(GuestOffset(offset), length) {
            Some(range) if range.end().0 <= size => ranges.push(range),
            Some(_) | None => return bad(&format!("it reaches past the disk's {size} bytes")),
        }
    }
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start());
    ranges.dedup_by(|next, last| {
        let joined = next.start() <= last.end();
        if joined {
            *last = GuestRange::between(last.start(), last.end().max(next.end()));
        }
        joined
    });
    Ok(ranges)
}

fn number_of(word: &str) -> Option<u64> {
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if word.bytes().all(|b| b.is_ascii_digit()) => word.parse().ok(),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Result<Vec<(u64, u64)>> {
        Ok(parse(text.as_bytes(), 1 << 20)?.iter().map(|r| (r.start().0, r.end().0)).collect())
    }

    #[test]
    fn lines_in_any_order_become_ranges_without_overlaps() {
        let text = "# from the volume manager\n0x10000 4096\n\n0 512 # boot sector\n66000 4096\n512 512\n9 0\n";
        assert_eq!(list(text).unwrap(), [(0, 1024), (0x10000, 70096)]);
        assert_eq!(list("").unwrap(), []);
    }

    #[test]
    fn whatever_is_no_range_of_the_disk_is_refused_by_its_line() {
        for bad in [
            "0",
            "0 1 2",
            "a 1",
            "-1 1",
            "+1 1",
            "0x 1x",
            "1048576 1",
            "0 1048577",
            "18446744073709551615 2",
            "0 99999999999999999999",
        ] {
            let e = list(&format!("0 1\n{bad}\n")).unwrap_err();
            assert!(e.to_string().contains("line 2"), "{bad}: {e}");
        }
        assert!(parse(&[0xff], 10).is_err());
    }

    proptest! {
        #[test]
        fn the_ranges_hold_the_same_bytes_as_the_lines(lines in proptest::collection::vec((0..64_u64, 0..16_u64), 0..12)) {
            let text: String = lines.iter().map(|(at, len)| format!("{at} {len}\n")).collect();
            let ranges = parse(text.as_bytes(), 80).unwrap();
            for byte in 0..80 {
                let listed = lines.iter().any(|(at, len)| (*at..at + len).contains(&byte));
                let found = ranges.iter().filter(|r| (r.start().0..r.end().0).contains(&byte)).count();
                prop_assert_eq!(found, usize::from(listed));
            }
            prop_assert!(ranges.windows(2).all(|w| w[0].end() < w[1].start()));
        }
    }
}
