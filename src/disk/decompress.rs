//! Decoding of compressed clusters.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::base::{Error, ErrorKind, Result};
use crate::format::qcow2::Compression;

thread_local! {
    // Made for every cluster, their tables would cost more than a small cluster's decoding.
    static DEFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZSTD: RefCell<Option<Decoder<'static>>> = RefCell::new(Decoder::new().ok());
}

/// Decodes `stored` into exactly `out.len()` bytes, a cluster.
///
/// What follows the stream in its last sector is ignored, as the format wants it; a stream that ends before the cluster is
/// full is corrupt.
pub(super) fn decompress(compression: Compression, stored: &[u8], out: &mut [u8]) -> Result<()> {
    match compression {
        Compression::Deflate => DEFLATE.with_borrow_mut(|stream| deflate(stream, stored, out)),
        Compression::Zstd => ZSTD.with_borrow_mut(|decoder| match decoder {
            Some(decoder) => zstd(decoder, stored, out),
            None => Err(Error::new(ErrorKind::Limit, "no memory for a zstd decoder")),
        }),
    }
}

fn deflate(stream: &mut Decompress, stored: &[u8], out: &mut [u8]) -> Result<()> {
    stream.reset(false);
    let status =
        stream.decompress(stored, out, FlushDecompress::Finish).map_err(|e| corrupt("deflate").with_source(e))?;
    match status {
        // BufError with a full cluster: the stream would go on, which QEMU takes as well.
        Status::StreamEnd | Status::BufError | Status::Ok if stream.total_out() == out.len() as u64 => Ok(()),
        _ => Err(corrupt("deflate")),
    }
}

fn zstd(decoder: &mut Decoder<'static>, stored: &[u8], out: &mut [u8]) -> Result<()> {
    let failed = |e| corrupt("zstd").with_source(e);
    decoder.reinit().map_err(failed)?;
    let mut input = InBuffer::around(stored);
    let mut output = OutBuffer::around(out);
    loop {
        let before = (input.pos(), output.pos());
        let wants = decoder.run(&mut input, &mut output).map_err(failed)?;
        let full = output.pos() == output.capacity();
        if full && wants == 0 {
            return Ok(());
        }
        // A frame that has ended short of the cluster may be followed by another; one that stands still never ends.
        if before == (input.pos(), output.pos()) {
            return Err(corrupt("zstd"));
        }
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a compressed cluster's {what} stream is damaged or ends too early"))
}
