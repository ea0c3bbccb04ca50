//! Layer 2: bytes ↔ structs, without I/O.
//!
//! Every parser takes bytes that somebody hostile may have written: it checks before it computes, and bounds what it
//! allocates. Each has a fuzz target.

pub mod dirty_list;
pub mod filesystem;
pub mod hash;
pub mod lzo;
pub mod manifest;
pub mod nbd;
pub mod ovf;
pub mod partition;
pub mod qcow2;
pub mod squashfs;
pub mod tar;
pub mod window;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::{Error, ErrorKind, Result};

/// The format of an image, as a manifest or an overlay's header declares it. Formats are never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// The disk's bytes as they are.
    Raw,
}

impl ImageFormat {
    /// The format of that name, as QEMU spells it.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the image format '{}' is not supported (qcow2 and raw are)", other.escape_debug()),
            )),
        }
    }

    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
