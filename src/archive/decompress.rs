//! Decoding of squashfs blocks, whatever they are compressed with. Nothing here ever makes more bytes than it is told.

use std::cell::RefCell;
use std::io::Read;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, Result};
use crate::format::lzo;
use crate::format::squashfs::Compression;

/// Most memory that a decoder of xz or LZMA streams may take, in KiB. Its dictionary is never larger than a block.
const XZ_MEMORY: u32 = 8 << 10;

thread_local! {
    // Their tables cost more to make than a small block costs to decode.
    static ZLIB: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = RefCell::new(zstd::bulk::Decompressor::new().ok());
}

/// Decodes `stored` into `out` and returns how many bytes it came to. A block that holds more, or is damaged, is corrupt.
pub(super) fn decompress(compression: Compression, stored: &[u8], out: &mut [u8]) -> Result<usize> {
    // To zstd this is no frame at all, which decodes to nothing.
    if stored.is_empty() {
        return Err(corrupt("compressed"));
    }
    match compression {
        Compression::Gzip => ZLIB.with_borrow_mut(|stream| gzip(stream, stored, out)),
        Compression::Zstd => ZSTD.with_borrow_mut(|decoder| {
            let decoder =
                decoder.as_mut().ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd decoder"))?;
            decoder.decompress_to_buffer(stored, out).map_err(|e| corrupt("zstd").with_source(e))
        }),
        Compression::Lz4 => lz4_flex::block::decompress_into(stored, out).map_err(|e| corrupt("LZ4").with_source(e)),
        Compression::Lzo => {
            let decoded = lzo::decode(stored, out.len())?;
            out.get_mut(..decoded.len()).ok_or_else(|| corrupt("LZO"))?.copy_from_slice(&decoded);
            Ok(decoded.len())
        }
        Compression::Xz => read_all(lzma_rust2::XzReader::new_mem_limit(stored, false, XZ_MEMORY), "xz", out),
        Compression::Lzma => {
            let reader = lzma_rust2::LzmaReader::new_mem_limit(stored, XZ_MEMORY, None);
            read_all(reader.map_err(|e| corrupt("LZMA").with_source(e))?, "LZMA", out)
        }
    }
}

/// The same, as a block that can be shared.
pub(super) fn decompress_block(compression: Compression, stored: &[u8], limit: usize) -> Result<Arc<[u8]>> {
    let mut block: Arc<[u8]> = std::iter::repeat_n(0, limit).collect();
    // Nobody else has it yet.
    let len = decompress(compression, stored, Arc::get_mut(&mut block).unwrap_or_default())?;
    Ok(match block.get(..len) {
        Some(part) if len < limit => part.into(),
        _ => block,
    })
}

fn gzip(stream: &mut Decompress, stored: &[u8], out: &mut [u8]) -> Result<usize> {
    stream.reset(true);
    match stream.decompress(stored, out, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => Ok(to_usize(stream.total_out())),
        Ok(Status::Ok | Status::BufError) => Err(corrupt("zlib")),
        Err(e) => Err(corrupt("zlib").with_source(e)),
    }
}

fn read_all(mut reader: impl Read, what: &str, out: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    let mut read = |into: &mut [u8]| reader.read(into).map_err(|e| corrupt(what).with_source(e));
    while let Some(rest) = out.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match read(rest)? {
            0 => return Ok(len),
            more => len += more,
        }
    }
    match read(&mut [0])? {
        0 => Ok(len),
        _ => Err(corrupt(what)),
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a {what} stream is damaged or holds more than a block"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn stored(compression: Compression, bytes: &[u8]) -> Option<Vec<u8>> {
        Some(match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::bulk::compress(bytes, 1).unwrap(),
            Compression::Lz4 => lz4_flex::block::compress(bytes),
            // No encoder is at hand; images by mksquashfs test them.
            Compression::Lzo | Compression::Xz | Compression::Lzma => return None,
        })
    }

    const ALL: [Compression; 6] =
        [Compression::Gzip, Compression::Lzma, Compression::Lzo, Compression::Xz, Compression::Lz4, Compression::Zstd];

    #[test]
    fn a_block_that_inflates_past_its_size_is_refused() {
        let content = vec![7; 100_000];
        for compression in ALL {
            let Some(stored) = stored(compression, &content) else { continue };
            assert_eq!(*decompress_block(compression, &stored, content.len()).unwrap(), content, "{compression:?}");
            let error = decompress_block(compression, &stored, content.len() - 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{compression:?}");
            // A decoder is used again after a failure.
            assert_eq!(*decompress_block(compression, &stored, content.len()).unwrap(), content, "{compression:?}");
        }
    }

    #[test]
    fn a_stream_cut_short_is_refused() {
        for compression in ALL {
            let stored = stored(compression, b"something that is long enough").unwrap_or(vec![1, 2, 3]);
            for len in 0..stored.len() {
                assert!(decompress_block(compression, &stored[..len], 1000).is_err(), "{compression:?} cut to {len}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_a_decoder_down(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
            for compression in ALL {
                let _ = decompress_block(compression, &bytes, 4096);
            }
        }
    }
}
