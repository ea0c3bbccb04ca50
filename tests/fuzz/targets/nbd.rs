//! What an NBD server may send: every message that is parsed, from arbitrary bytes.
//!
//! Holds: no panic; what is taken from a payload never is more than the payload holds.

#![no_main]

use annals::format::nbd::*;

/// The first bytes as an array, zeros behind them.
fn block<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut block = [0; N];
    let len = N.min(bytes.len());
    block[..len].copy_from_slice(&bytes[..len]);
    block
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Greeting::parse(&block(bytes));
    for option in 0..16 {
        let _ = OptionReplyHeader::parse(option, &block(bytes));
    }
    let _ = parse_error_text(bytes);
    let _ = ListedName::parse(bytes);
    let _ = ExportSize::parse(&block(bytes));
    let _ = Info::parse(bytes);
    let _ = MetaContext::parse(bytes);
    let _ = SimpleReply::parse(&block(bytes));
    let _ = ChunkHeader::parse_structured(&block(bytes));
    let _ = ChunkHeader::parse_extended(&block(bytes));
    let _ = OffsetHole::parse(bytes);
    for extended in [false, true] {
        if let Ok(status) = BlockStatus::parse(extended, bytes) {
            assert!(status.extents.len() <= bytes.len() / 8);
        }
    }
    for kind in [0x8001, 0x8002, 0xffff, 0x8000, 1] {
        let _ = ErrorChunk::parse(kind, bytes);
    }
});
