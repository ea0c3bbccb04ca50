//! LZO1X streams, decoded. After the description of the format in the Linux kernel's `Documentation/staging/lzo.rst`.

use crate::base::{Error, ErrorKind, Result};

/// Decodes a whole stream to at most `limit` bytes; one that holds more, or contradicts itself, is corrupt.
pub fn decode(stream: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut decoder = Decoder { input: stream, output: Vec::with_capacity(limit), limit };
    decoder.run().ok_or_else(|| Error::new(ErrorKind::Corrupt, "an LZO stream is damaged or too long"))?;
    Ok(decoder.output)
}

struct Decoder<'a> {
    input: &'a [u8],
    output: Vec<u8>,
    limit: usize,
}

/// What the meaning of the next short instruction hangs on: how many literals the last one copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Literals {
    None,
    Few,
    Run,
}

impl Decoder<'_> {
    fn run(&mut self) -> Option<()> {
        let mut before = Literals::None;
        match self.input.first()? {
            first @ 22.. => {
                let len = usize::from(first - 17);
                self.byte()?;
                self.literals(len)?;
                before = Literals::Run;
            }
            first @ 18..=21 => {
                let len = usize::from(first - 17);
                self.byte()?;
                self.literals(len)?;
                before = Literals::Few;
            }
            0..=17 => {}
        }
        loop {
            let instruction = usize::from(self.byte()?);
            let (distance, len, after) = match instruction {
                0..=15 if before == Literals::None => {
                    let len = self.length(instruction, 15)?;
                    self.literals(len.checked_add(3)?)?;
                    before = Literals::Run;
                    continue;
                }
                0..=15 => {
                    let far = usize::from(self.byte()?) << 2 | instruction >> 2;
                    match before {
                        Literals::Run => (far + 2049, 3, instruction),
                        Literals::Few | Literals::None => (far + 1, 2, instruction),
                    }
                }
                16..=31 => {
                    let len = self.length(instruction & 7, 7)?;
                    let low = self.pair()?;
                    let far = (instruction & 8) << 11 | low >> 2;
                    if far == 0 {
                        return self.input.is_empty().then_some(());
                    }
                    (far + 16_384, len.checked_add(2)?, low)
                }
                32..=63 => {
                    let len = self.length(instruction & 31, 31)?;
                    let low = self.pair()?;
                    ((low >> 2) + 1, len.checked_add(2)?, low)
                }
                _ => {
                    let far = usize::from(self.byte()?) << 3 | instruction >> 2 & 7;
                    (far + 1, (instruction >> 5) + 1, instruction)
                }
            };
            self.repeat(distance, len)?;
            let few = after & 3;
            self.literals(few)?;
            before = if few == 0 { Literals::None } else { Literals::Few };
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(*first)
    }

    fn pair(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes([self.byte()?, self.byte()?])))
    }

    /// A length in an instruction's bits, or, where those are 0, in the bytes that follow: 255 for each that is 0, and one that is not.
    fn length(&mut self, bits: usize, largest: usize) -> Option<usize> {
        if bits != 0 {
            return Some(bits);
        }
        let mut len = largest;
        loop {
            match self.byte()? {
                0 => len = len.checked_add(255)?,
                last => return len.checked_add(usize::from(last)),
            }
        }
    }

    fn has_room(&self, len: usize) -> Option<()> {
        (len <= self.limit - self.output.len()).then_some(())
    }

    fn literals(&mut self, len: usize) -> Option<()> {
        self.has_room(len)?;
        let (now, rest) = self.input.split_at_checked(len)?;
        self.output.extend_from_slice(now);
        self.input = rest;
        Some(())
    }

    fn repeat(&mut self, distance: usize, len: usize) -> Option<()> {
        self.has_room(len)?;
        let start = self.output.len().checked_sub(distance)?;
        if distance >= len {
            self.output.extend_from_within(start..start + len);
            return Some(());
        }
        // The copy runs into what it writes itself.
        for at in start..start + len {
            let byte = *self.output.get(at)?;
            self.output.push(byte);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_repeats_and_the_end_are_decoded() {
        // 4 literals, then 3 + 1 bytes from 4 back and 2 literals, then the end mark.
        let stream = [21, b'a', b'b', b'c', b'd', 0b0110_1110, 0, b'x', b'y', 17, 0, 0];
        assert_eq!(decode(&stream, 100).unwrap(), b"abcdabcdxy");
        assert!(decode(&stream, 9).is_err(), "more than the limit");
        for len in 0..stream.len() {
            assert!(decode(&stream[..len], 100).is_err(), "cut to {len}");
        }
        assert!(decode(&[21, 1, 2, 3, 4, 0b0110_1100, 1, 17, 0, 0], 100).is_err(), "from before the start");
    }

    proptest! {
        #[test]
        fn no_stream_passes_the_limit(stream in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(output) = decode(&stream, 1000) {
                prop_assert!(output.len() <= 1000);
            }
        }
    }
}
