//! Opening a chain: from the newest layer down through the backing names.

use std::collections::HashSet;
use std::sync::Arc;

use super::ahead::Ahead;
use super::env::DiskEnv;
use super::layer::{Layer, Node};
use crate::base::error::ResultExt;
use crate::base::{Error, ErrorKind, Result};
use crate::format::ImageFormat;
use crate::storage::{LayerSource, RelPath};

/// More layers than any schedule makes in years of hourly backups; a chain beyond it is an attack or an accident.
pub(super) const MAX_DEPTH: usize = 10_000;

/// Opens `head` and every layer below it, newest first. `expected`: see [`Disk::open_expecting`](super::Disk::open_expecting).
pub(super) fn open(
    source: &dyn LayerSource,
    head: &RelPath,
    format: ImageFormat,
    expected: &[RelPath],
    env: &DiskEnv,
) -> Result<Box<[Arc<Node>]>> {
    let mut layers = Vec::new();
    let mut ahead = Ahead::new(expected);
    let mut seen = HashSet::new();
    let mut next = Some((head.clone(), format));
    while let Some((path, format)) = next.take() {
        if layers.len() == MAX_DEPTH {
            return Err(Error::new(ErrorKind::Corrupt, format!("the chain has more than {MAX_DEPTH} layers")));
        }
        ahead.reach(source, &path);
        let layer = open_layer(source, &path, format).map_err(|e| match layers.last() {
            Some(above) => missing(e, above),
            None => e,
        })?;
        let identity = layer.identity();
        if !seen.insert((identity.device, identity.inode)) {
            let text = format!("the chain is a cycle: it comes back to '{path}'");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        next = backing_of(source, &layer)?;
        layers.push(layer);
    }
    let mut nodes: Vec<Arc<Node>> = Vec::with_capacity(layers.len());
    for layer in layers.into_iter().rev() {
        let below = nodes.last().map(|node| node.id);
        nodes.push(env.node(layer, below));
    }
    nodes.reverse();
    Ok(nodes.into())
}

/// Opens one image without looking at what lies below it.
pub(super) fn open_layer(source: &dyn LayerSource, path: &RelPath, format: ImageFormat) -> Result<Layer> {
    let opened = source.open(path).and_then(|file| Layer::open(path.clone(), file, format));
    opened.context(|| format!("layer '{path}'"))
}

/// The layer below, by name and declared format.
fn backing_of(source: &dyn LayerSource, layer: &Layer) -> Result<Option<(RelPath, ImageFormat)>> {
    let Some(backing) = layer.backing() else { return Ok(None) };
    let Some(format) = &backing.format else {
        let name = String::from_utf8_lossy(&backing.name);
        let error = Error::new(
            ErrorKind::Unsupported,
            format!(
                "it names the backing file '{}' without its format, and formats are never guessed",
                name.escape_debug()
            ),
        );
        return Err(
            layer.context(error.with_hint("'qemu-img rebase -u -F FORMAT -b NAME IMAGE' writes the format down"))
        );
    };
    let format = ImageFormat::parse(format).map_err(|e| layer.context(e))?;
    let path = source.resolve(layer.path(), &backing.name).map_err(|e| layer.context(e))?;
    Ok(Some((path, format)))
}

/// The layer right below the image at `path`, by name and declared format; reads the image's header and nothing else.
pub fn backing(
    source: &dyn LayerSource,
    path: &RelPath,
    format: ImageFormat,
) -> Result<Option<(RelPath, ImageFormat)>> {
    backing_of(source, &open_layer(source, path, format)?)
}

/// A layer that is not there is a hole in the chain, told with the layer that needs it.
fn missing(error: Error, above: &Layer) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::new(ErrorKind::MissingLayer, format!("the backing file of '{}' is missing", above.path()))
        .with_source(error)
        .with_hint("the store is incomplete: copy the missing file back to its place")
}
