//! Decoding of squashfs blocks, whatever they are compressed with. Nothing here ever makes more bytes than it is told.

use std::cell::RefCell;
use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};

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

/// Decodes `stored` into at most `limit` bytes. A block that holds more, or is damaged, is corrupt.
pub(super) fn decompress(compression: Compression, stored: &[u8], limit: usize) -> Result<Vec<u8>> {
    // To zstd this is no frame at all, which decodes to nothing.
    if stored.is_empty() {
        return Err(corrupt("compressed"));
    }
    match compression {
        Compression::Gzip => ZLIB.with_borrow_mut(|stream| gzip(stream, stored, limit)),
        Compression::Zstd => ZSTD.with_borrow_mut(|decoder| {
            let mut out = Vec::with_capacity(limit);
            let decoder =
                decoder.as_mut().ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd decoder"))?;
            decoder.decompress_to_buffer(stored, &mut out).map_err(|e| corrupt("zstd").with_source(e))?;
            Ok(out)
        }),
        Compression::Lz4 => {
            let mut out = vec![0; limit];
            let len = lz4_flex::block::decompress_into(stored, &mut out).map_err(|e| corrupt("LZ4").with_source(e))?;
            out.truncate(len);
            Ok(out)
        }
        Compression::Lzo => lzo::decode(stored, limit),
        Compression::Xz => read_all(lzma_rust2::XzReader::new_mem_limit(stored, false, XZ_MEMORY), "xz", limit),
        Compression::Lzma => {
            let reader = lzma_rust2::LzmaReader::new_mem_limit(stored, XZ_MEMORY, None);
            read_all(reader.map_err(|e| corrupt("LZMA").with_source(e))?, "LZMA", limit)
        }
    }
}

fn gzip(stream: &mut Decompress, stored: &[u8], limit: usize) -> Result<Vec<u8>> {
    stream.reset(true);
    let mut out = Vec::with_capacity(limit);
    match stream.decompress_vec(stored, &mut out, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => Ok(out),
        Ok(Status::Ok | Status::BufError) => Err(corrupt("zlib")),
        Err(e) => Err(corrupt("zlib").with_source(e)),
    }
}

fn read_all(reader: impl Read, what: &str, limit: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(limit);
    // One more than the limit, to see whether there is more.
    let most = (limit as u64).saturating_add(1);
    reader.take(most).read_to_end(&mut out).map_err(|e| corrupt(what).with_source(e))?;
    if out.len() > limit {
        return Err(corrupt(what));
    }
    Ok(out)
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
            assert_eq!(decompress(compression, &stored, content.len()).unwrap(), content, "{compression:?}");
            let error = decompress(compression, &stored, content.len() - 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{compression:?}");
            // A decoder is used again after a failure.
            assert_eq!(decompress(compression, &stored, content.len()).unwrap(), content, "{compression:?}");
        }
    }

    #[test]
    fn a_stream_cut_short_is_refused() {
        for compression in ALL {
            let stored = stored(compression, b"something that is long enough").unwrap_or(vec![1, 2, 3]);
            for len in 0..stored.len() {
                assert!(decompress(compression, &stored[..len], 1000).is_err(), "{compression:?} cut to {len}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_a_decoder_down(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
            for compression in ALL {
                let _ = decompress(compression, &bytes, 4096);
            }
        }
    }
}
