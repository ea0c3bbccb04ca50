//! Byte positions that cannot be mixed up: an offset in the guest's disk is not one in an image file.

use std::fmt;

/// A byte offset in the disk as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestOffset(pub u64);

/// A byte offset in a file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostOffset(pub u64);

macro_rules! offset {
    ($name:ident) => {
        impl $name {
            /// The offset `len` bytes further on, or `None` past the end of 64 bits.
            #[must_use]
            pub fn checked_add(self, len: u64) -> Option<Self> {
                self.0.checked_add(len).map(Self)
            }

            /// The offset `len` bytes further on, at most `u64::MAX`.
            #[must_use]
            pub fn saturating_add(self, len: u64) -> Self {
                Self(self.0.saturating_add(len))
            }

            /// Whether the offset is a multiple of `unit`, a power of two.
            #[must_use]
            pub fn is_aligned(self, unit: u64) -> bool {
                self.0 & (unit - 1) == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}
offset!(GuestOffset);
offset!(HostOffset);

macro_rules! range {
    ($name:ident, $offset:ident) => {
        /// Half-open: `start` is in it, `start + len` is not. Never reaches past 64 bits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name {
            start: $offset,
            len: u64,
        }

        impl $name {
            /// The range of `len` bytes at `start`, or `None` where it would pass the end of 64 bits.
            #[must_use]
            pub fn new(start: $offset, len: u64) -> Option<Self> {
                start.checked_add(len).map(|_| Self { start, len })
            }

            /// The range between two offsets; empty when `end` is not after `start`.
            #[must_use]
            pub fn between(start: $offset, end: $offset) -> Self {
                Self { start, len: end.0.saturating_sub(start.0) }
            }

            /// Its first byte.
            #[must_use]
            pub fn start(self) -> $offset {
                self.start
            }

            /// The byte after its last.
            #[must_use]
            pub fn end(self) -> $offset {
                $offset(self.start.0 + self.len)
            }

            /// Its length in bytes.
            #[must_use]
            #[allow(clippy::len_without_is_empty)] // is_empty stands below; the macro hides it from the lint
            pub fn len(self) -> u64 {
                self.len
            }

            /// Whether it holds no byte.
            #[must_use]
            pub fn is_empty(self) -> bool {
                self.len == 0
            }

            /// What both ranges hold.
            #[must_use]
            pub fn intersect(self, other: Self) -> Self {
                Self::between(self.start.max(other.start), self.end().min(other.end()))
            }
        }
    };
}
range!(GuestRange, GuestOffset);
range!(HostRange, HostOffset);

/// A length as an index into memory.
///
/// Saturates on machines whose pointers are narrower than 64 bits; an allocation or slice of that
/// size fails there, it never wraps.
#[must_use]
pub fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_pass_the_end_of_64_bits() {
        assert!(GuestRange::new(GuestOffset(u64::MAX), 1).is_none());
        assert!(GuestRange::new(GuestOffset(u64::MAX), 0).is_some());
    }

    #[test]
    fn disjoint_ranges_share_nothing() {
        let a = HostRange::between(HostOffset(0), HostOffset(10));
        let b = HostRange::between(HostOffset(10), HostOffset(20));
        assert!(a.intersect(b).is_empty());
        assert_eq!(a.intersect(HostRange::between(HostOffset(4), HostOffset(40))).len(), 6);
    }
}
