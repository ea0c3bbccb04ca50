//! One image file as a layer of a chain, whatever its format.

use std::sync::Arc;

use super::map::Collector;
use super::{qcow2, raw};
use crate::base::{Error, GuestOffset, GuestRange, HostOffset, Result};
use crate::format::ImageFormat;
use crate::format::qcow2::{Backing, Header};
use crate::storage::{FileIdentity, FileNumber, LastingIdentity, RelPath, Storage};

/// Tells one open layer (with what lies below it) from every other one that this process ever had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(pub(super) FileNumber);

/// A layer at its place in a chain: the same file above other layers is another node.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) layer: Layer,
}

/// One open image file.
pub(super) struct Layer {
    path: RelPath,
    file: Arc<dyn Storage>,
    kind: Kind,
}

enum Kind {
    Qcow2(qcow2::Qcow2),
    Raw,
}

/// What a listing says of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its file, beneath the guest's directory.
    pub path: RelPath,
    /// Its format.
    pub format: ImageFormat,
    /// The size of the disk that it describes, in bytes.
    pub virtual_size: u64,
    /// The size of its file, in bytes.
    pub file_size: u64,
    /// Which file it is, as it was when opened.
    pub identity: LastingIdentity,
    /// Its header, for a qcow2 image.
    pub header: Option<Header>,
}

impl Layer {
    /// Opens the image; reads its header and nothing else.
    pub(super) fn open(path: RelPath, file: Arc<dyn Storage>, format: ImageFormat) -> Result<Self> {
        let kind = match format {
            ImageFormat::Qcow2 => Kind::Qcow2(qcow2::Qcow2::open(file.as_ref())?),
            ImageFormat::Raw => Kind::Raw,
        };
        Ok(Self { path, file, kind })
    }

    pub(super) fn path(&self) -> &RelPath {
        &self.path
    }

    pub(super) fn file(&self) -> &dyn Storage {
        self.file.as_ref()
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.file.identity()
    }

    pub(super) fn lasting_identity(&self) -> LastingIdentity {
        self.file.lasting_identity()
    }

    /// See [`Storage::is_settled`].
    pub(super) fn is_settled(&self) -> bool {
        self.file.is_settled()
    }

    pub(super) fn format(&self) -> ImageFormat {
        match self.kind {
            Kind::Qcow2(_) => ImageFormat::Qcow2,
            Kind::Raw => ImageFormat::Raw,
        }
    }

    /// Size of the disk that the layer describes; beyond it, the layer and all below it read as zeros.
    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Qcow2(image) => image.header().size,
            Kind::Raw => self.file.size(),
        }
    }

    pub(super) fn backing(&self) -> Option<&Backing> {
        match &self.kind {
            Kind::Qcow2(image) => image.header().backing.as_ref(),
            Kind::Raw => None,
        }
    }

    pub(super) fn qcow2(&self) -> Option<&qcow2::Qcow2> {
        match &self.kind {
            Kind::Qcow2(image) => Some(image),
            Kind::Raw => None,
        }
    }

    /// Log2 of the smallest unit that the layer allocates, and of its clusters.
    pub(super) fn granularity(&self) -> (u32, u32) {
        const RAW_BITS: u32 = 16;
        match &self.kind {
            Kind::Qcow2(image) => (image.header().geometry.unit_bits(), image.header().geometry.cluster_bits),
            Kind::Raw => (RAW_BITS, RAW_BITS),
        }
    }

    /// Says what this image holds of `ranges` (sorted, disjoint, within its size), in order; what it does not mention it
    /// does not hold. Entries that cannot be followed are said to be bad; only a failing read of a table is an error.
    pub(super) fn visit(&self, ranges: &[GuestRange], found: &mut Collector) -> Result<()> {
        match &self.kind {
            Kind::Qcow2(image) => image.visit(self.file(), ranges, found),
            Kind::Raw => raw::visit(self.file(), ranges, found),
        }
        .map_err(|e| self.context(e))
    }

    /// Asks the kernel for the tables that [`visit`](Self::visit) of `range` will read.
    pub(super) fn will_visit(&self, range: GuestRange) {
        if let Kind::Qcow2(image) = &self.kind {
            image.will_visit(self.file(), range);
        }
    }

    /// The first offset at or after `from` that the layer may hold; nothing between is in it. `None`: nothing follows.
    pub(super) fn next_allocated(&self, from: GuestOffset) -> Result<Option<GuestOffset>> {
        match &self.kind {
            Kind::Qcow2(image) => image.next_allocated(self.file(), from),
            Kind::Raw if from.0 >= self.size() => Ok(None),
            Kind::Raw => Ok(self.file.next_data(HostOffset(from.0))?.map(|at| GuestOffset(at.0))),
        }
        .map_err(|e| self.context(e))
    }

    /// Refuses a layer whose tables are shared, so that scanning it could be endless; counts them once.
    pub(super) fn check_scan(&self) -> Result<()> {
        match &self.kind {
            Kind::Qcow2(image) => image.check_table_count(self.file()).map_err(|e| self.context(e)),
            Kind::Raw => Ok(()),
        }
    }

    /// Why the entry for `at` is bad.
    pub(super) fn diagnose(&self, at: GuestOffset) -> Error {
        self.context(match &self.kind {
            Kind::Qcow2(image) => image.diagnose(self.file(), at),
            Kind::Raw => raw::diagnose(at),
        })
    }

    /// `error`, told as one of this layer.
    pub(super) fn context(&self, error: Error) -> Error {
        error.context(format!("layer '{}'", self.path))
    }

    pub(super) fn info(&self) -> LayerInfo {
        LayerInfo {
            path: self.path.clone(),
            format: self.format(),
            virtual_size: self.size(),
            file_size: self.file.size(),
            identity: self.lasting_identity(),
            header: self.qcow2().map(|image| image.header().clone()),
        }
    }
}
