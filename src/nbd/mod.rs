//! Layer 3: an NBD client for whoever backs up: it reads, asks for block status, trims, and nothing else.
//!
//! Built to be a crate of its own: it uses `base` for units and errors and `format::nbd` for the messages. What a server
//! sends is checked before it is believed; a server that breaks the protocol costs the connection, never memory
//! without bound and never a wait without end. Whether to try again is for the caller to say.

mod client;
mod connection;
mod extents;
mod handshake;
mod list;
mod options;
mod reply;
mod stream;
mod tls;
mod uri;

pub use crate::format::nbd::{BlockSizes, ExportFlags, HeaderStyle, ServerErrno, constants};
pub use client::{Client, Export};
pub use extents::{Batch, Extent, Extents};
pub use list::{Details, ListedExport, Listing, list};
pub use options::{Failures, Options, ReconnectPolicy};
pub use reply::ServerError;
pub use uri::{Endpoint, TlsParameters, Uri};
