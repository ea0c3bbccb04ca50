//! What a server exports, asked without entering any export.

use super::client::{Client, haggle, within};
use super::options::Options;
use super::tls::Security;
use super::uri::Uri;
use crate::base::error::ResultExt as _;
use crate::base::{Error, ErrorKind, Result};
use crate::format::nbd::{BlockSizes, ExportFlags, HeaderStyle, ListedName};

/// What a server exports.
#[derive(Debug)]
pub struct Listing {
    /// Whether it was asked over TLS.
    pub tls: bool,
    /// The best headers that it knows.
    pub headers: HeaderStyle,
    /// Its exports.
    pub exports: Vec<ListedExport>,
}

/// One export of a server.
#[derive(Debug)]
pub struct ListedExport {
    /// Its name; empty for the server's default.
    pub name: String,
    /// The server's words for people; often empty.
    pub description: String,
    /// What it is, or why the server does not say.
    pub details: Result<Details>,
}

/// What a server tells about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Its size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// What requests must keep to, where the server says so.
    pub block_sizes: Option<BlockSizes>,
    /// The meta contexts that can be selected.
    pub contexts: Vec<String>,
}

/// Lists the export that a URI names, or all that the server has when it names none.
pub async fn list(uri: &Uri, options: &Options) -> Result<Listing> {
    list_inner(uri, options).await.context(|| uri.to_string())
}

async fn list_inner(uri: &Uri, options: &Options) -> Result<Listing> {
    let limit = options.handshake_timeout;
    let security = Security::of(uri, options.certificates.as_deref())?;
    let mut haggling = within(limit, haggle(uri, security.as_ref())).await?;
    let named = |name: &str| vec![ListedName { name: name.to_owned(), description: String::new() }];
    let names = match uri.export() {
        // A server that will not list still has the export that an empty name stands for.
        "" => within(limit, haggling.list()).await?.unwrap_or_else(|| named("")),
        name => named(name),
    };
    let headers = haggling.headers();
    let mut exports = Vec::with_capacity(names.len());
    for ListedName { name, description } in names {
        let asked = async {
            let Some(facts) = haggling.info(&name).await? else { return Ok(None) };
            let contexts = haggling.list_contexts(&name).await?;
            Ok(Some((facts, contexts)))
        };
        let (description, details) = match within(limit, asked).await {
            Ok(Some((facts, contexts))) => {
                let details = Details {
                    size: facts.size.size,
                    flags: facts.size.flags,
                    block_sizes: facts.block_sizes,
                    contexts,
                };
                (if description.is_empty() { facts.description } else { description }, Ok(details))
            }
            Ok(None) => (description, by_entering(&uri.with_export(name.as_str()), options).await),
            Err(e) if matches!(e.kind(), ErrorKind::Disconnected | ErrorKind::Protocol) => return Err(e),
            Err(e) => (description, Err(e)),
        };
        exports.push(ListedExport { name, description, details });
    }
    within(limit, async {
        haggling.abort().await;
        Ok::<_, Error>(())
    })
    .await?;
    Ok(Listing { tls: security.is_some(), headers, exports })
}

/// An old server tells about an export only whom it lets in.
async fn by_entering(uri: &Uri, options: &Options) -> Result<Details> {
    let client = Client::connect(uri, &Options { contexts: Vec::new(), connections: 1, ..options.clone() }).await?;
    let export = client.export();
    let details = Details { size: export.size, flags: export.flags, block_sizes: None, contexts: Vec::new() };
    client.close().await;
    Ok(details)
}
