//! Decoding of compressed clusters.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::base::{Error, ErrorKind, Result};
use crate::format::qcow2::Compression;

/// Decodes `stored` into exactly `out.len()` bytes, a cluster.
///
/// What follows the stream in its last sector is ignored, as the format wants it; a stream that ends before the cluster is
/// full is corrupt.
pub(super) fn decompress(compression: Compression, stored: &[u8], out: &mut [u8]) -> Result<()> {
    match compression {
        Compression::Deflate => deflate(stored, out),
        Compression::Zstd => zstd(stored, out),
    }
}

fn deflate(stored: &[u8], out: &mut [u8]) -> Result<()> {
    let mut stream = Decompress::new(false);
    let status =
        stream.decompress(stored, out, FlushDecompress::Finish).map_err(|e| corrupt("deflate").with_source(e))?;
    match status {
        // BufError with a full cluster: the stream would go on, which QEMU takes as well.
        Status::StreamEnd | Status::BufError | Status::Ok if stream.total_out() == out.len() as u64 => Ok(()),
        _ => Err(corrupt("deflate")),
    }
}

fn zstd(stored: &[u8], out: &mut [u8]) -> Result<()> {
    let failed = |e| corrupt("zstd").with_source(e);
    let mut decoder = Decoder::new().map_err(failed)?;
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
