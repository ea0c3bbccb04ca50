//! One layer looked at alone: is its file whole, and does every entry lead somewhere?

use super::chain::open_layer;
use super::layer::{Layer, LayerInfo};
use super::map::{Builder, LayerIndex, Source};
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::format::ImageFormat;
use crate::storage::{LayerSource, RelPath};

/// What looking at a layer found.
#[derive(Debug)]
pub struct LayerCheck {
    /// What the layer is.
    pub info: LayerInfo,
    /// Bytes of disk that this layer itself stores; zeros are not stored.
    pub stored: u64,
    /// What is wrong inside it, the first few.
    pub problems: Vec<Error>,
}

/// Problems that are told of one layer; one cut can make thousands.
const MOST_PROBLEMS: usize = 8;
/// Bytes of disk that are looked at in one go, in clusters of the layer.
const STEP_CLUSTERS_BITS: u32 = 13;

/// Looks at every table of the image at `path`, without what lies below it and without its data.
///
/// An image that cannot be opened at all is an error; one that opens and is damaged inside is a check with problems.
pub fn check_layer(source: &dyn LayerSource, path: &RelPath, format: ImageFormat) -> Result<LayerCheck> {
    let layer = open_layer(source, path, format)?;
    let mut check = LayerCheck { info: layer.info(), stored: 0, problems: Vec::new() };
    if let Some(image) = layer.qcow2() {
        let mut tables = image.tables(layer.file()).map_err(|e| layer.context(e))?;
        tables.sort_unstable();
        if let Some(twice) = tables.windows(2).find(|pair| pair[0] == pair[1]) {
            let text = format!("the L2 table at {} is named by two L1 entries", twice[0]);
            check.problems.push(layer.context(Error::new(ErrorKind::Corrupt, text)));
        }
    }
    let step = 1u64 << (layer.granularity().1 + STEP_CLUSTERS_BITS);
    let mut next = layer.next_allocated(GuestOffset(0))?;
    while let Some(at) = next {
        let end = GuestOffset((at.0 / step + 1).saturating_mul(step).min(layer.size()));
        check_range(&layer, GuestRange::between(at, end), &mut check)?;
        next = layer.next_allocated(end)?;
    }
    Ok(check)
}

fn check_range(layer: &Layer, range: GuestRange, check: &mut LayerCheck) -> Result<()> {
    let mut builder = Builder::new(range);
    builder.ask(LayerIndex(0), layer.size(), |open, found| layer.visit(open, found))?;
    let map = builder.finish();
    for piece in map.pieces(range) {
        match piece.source {
            Source::Zero => {}
            Source::Data(..) | Source::Compressed(..) => check.stored += piece.range.len(),
            Source::Bad(_) if check.problems.len() < MOST_PROBLEMS => {
                check.problems.push(layer.diagnose(piece.range.start()));
            }
            Source::Bad(_) => {}
        }
    }
    Ok(())
}
