//! Points in time: seconds of UTC, and the two ways a backup's name spells them.

use std::fmt;
use std::time::SystemTime;

use super::{Error, ErrorKind, Result};

/// A point in time in whole seconds since 1970-01-01T00:00:00Z, within the years 1970 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 9999-12-30T22:00:00Z, the last second that is within the year 9999 at every offset, and therefore jiff's last.
const LAST_SECOND: i64 = 253_402_207_200;

/// Nanoseconds since the epoch by the machine's clock; 0 where that is set before it.
#[must_use]
pub fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

impl Timestamp {
    /// 1970-01-01T00:00:00Z, for what has no time of its own.
    pub const EPOCH: Self = Self(0);

    /// From seconds since the epoch, or `None` outside the years 1970 to 9999.
    #[must_use]
    pub fn from_epoch(seconds: i64) -> Option<Self> {
        (0..=LAST_SECOND).contains(&seconds).then_some(Self(seconds))
    }

    /// From seconds since the epoch; a time outside the years 1970 to 9999, which only a damaged or forged file has,
    /// becomes the nearest within.
    #[must_use]
    pub fn nearest(seconds: i128) -> Self {
        Self(i64::try_from(seconds.clamp(0, LAST_SECOND.into())).unwrap_or(0))
    }

    /// This second, by the machine's clock.
    pub fn now() -> Result<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok();
        let seconds = since.and_then(|since| i64::try_from(since.as_secs()).ok());
        seconds
            .and_then(Self::from_epoch)
            .ok_or_else(|| Error::new(ErrorKind::Limit, "the machine's clock is not between the years 1970 and 9999"))
    }

    /// Seconds since the epoch.
    #[must_use]
    pub fn epoch(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339 with any offset (`2024-11-07T16:51:22Z`, `2024-11-07T17:51:22+01:00`).
    ///
    /// Fractions of a second are cut off.
    pub fn parse_rfc3339(text: &str) -> Result<Self> {
        let parsed: jiff::Timestamp = text
            .parse()
            .map_err(|e| Error::new(ErrorKind::Usage, format!("'{text}' is not an RFC 3339 time")).with_source(e))?;
        Self::from_epoch(parsed.as_second())
            .ok_or_else(|| Error::new(ErrorKind::Usage, format!("'{text}' is not between the years 1970 and 9999")))
    }

    /// Parses the file-name-safe form, exactly `2024-11-07T16-51-22Z`.
    #[must_use]
    pub fn parse_file_name(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 20 || !text.is_ascii() || bytes[13] != b'-' || bytes[16] != b'-' || bytes[19] != b'Z' {
            return None;
        }
        let time = Self::parse_rfc3339(&format!("{}:{}:{}", &text[..13], &text[14..16], &text[17..])).ok()?;
        // Only the one spelling that we write: no leap second, no lower-case letters.
        (time.file_name() == text).then_some(time)
    }

    /// Parses seconds since the epoch as older stores spell them: digits only, no leading zero.
    #[must_use]
    pub fn parse_epoch(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
            return None;
        }
        Self::from_epoch(text.parse().ok()?)
    }

    /// `2024-11-07T16-51-22Z`: RFC 3339 with `-` for `:`.
    #[must_use]
    pub fn file_name(self) -> String {
        self.to_string().replace(':', "-")
    }
}

/// RFC 3339 in UTC: `2024-11-07T16:51:22Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{}", self.0),
        }
    }
}

/// A file's time as `stat` tells it: seconds since the epoch, before it where negative, and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime {
    /// Whole seconds, rounded towards the past.
    pub seconds: i64,
    /// Nanoseconds after them, fewer than 1,000,000,000.
    pub nanos: u32,
}

impl FileTime {
    /// A whole second.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }

    /// Parses a decimal number of seconds with an optional sign and fraction (`-1.5`), as PAX headers have it.
    ///
    /// What lies beyond nanoseconds is rounded towards the past. `None` where it is no such number or outside 64 bits.
    #[must_use]
    pub fn parse_decimal(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        let nanos =
            fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, b| n * 10 + u32::from(b - b'0'));
        if !negative {
            return Some(Self { seconds, nanos });
        }
        let beyond = u32::from(fraction.bytes().skip(9).any(|b| b != b'0'));
        let back = nanos + beyond;
        Some(match back {
            0 => Self { seconds: -seconds, nanos: 0 },
            back => Self { seconds: (-seconds).checked_sub(1)?, nanos: 1_000_000_000 - back },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_second() {
        let t = Timestamp::parse_epoch("1730998282").unwrap();
        assert_eq!(t.to_string(), "2024-11-07T16:51:22Z");
        assert_eq!(t.file_name(), "2024-11-07T16-51-22Z");
        assert_eq!(Timestamp::parse_file_name("2024-11-07T16-51-22Z"), Some(t));
        assert_eq!(Timestamp::parse_rfc3339("2024-11-07T17:51:22+01:00").unwrap(), t);
    }

    #[test]
    fn a_time_that_cannot_be_spelled_becomes_the_nearest_that_can() {
        assert_eq!(Timestamp::nearest(-5).epoch(), 0);
        assert_eq!(Timestamp::nearest(1_730_998_282).to_string(), "2024-11-07T16:51:22Z");
        assert_eq!(Timestamp::nearest(i128::MAX).to_string(), "9999-12-30T22:00:00Z");
        assert_eq!(Timestamp::from_epoch(LAST_SECOND + 1), None);
    }

    #[test]
    fn only_the_spelling_that_we_write_is_a_directory_name() {
        for no in [
            "2024-11-07T16:51:22Z",
            "2024-11-07t16-51-22z",
            "2024-13-07T16-51-22Z",
            "2024-11-07T16-51-60Z",
            "2024-11-07T16-51-22é",
            "",
        ] {
            assert_eq!(Timestamp::parse_file_name(no), None, "{no}");
        }
        for no in ["", "007", "+1", "-1", "99999999999999", "1e3"] {
            assert_eq!(Timestamp::parse_epoch(no), None, "{no}");
        }
    }

    #[test]
    fn decimal_times_before_the_epoch_count_their_fraction_forwards() {
        let time = |text: &str| FileTime::parse_decimal(text.as_bytes()).map(|t| (t.seconds, t.nanos));
        assert_eq!(time("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time("5"), Some((5, 0)));
        assert_eq!(time("5.0000000019"), Some((5, 1)));
        assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time("-1.0"), Some((-1, 0)));
        assert_eq!(time("-1.0000000001"), Some((-2, 999_999_999)));
        for no in ["", "-", ".5", "1e3", "1.5.2", "99999999999999999999", " 1", "+1"] {
            assert_eq!(time(no), None, "{no}");
        }
    }
}
