//! `annals init`: makes a store.

use std::path::PathBuf;

use serde::Serialize;

use super::Outcome;
use super::args::Global;
use super::output::{Output, printable};
use crate::base::Result;
use crate::catalog::Store;

/// Make a store
///
/// Marks the directory that --store names (made if it is not there) as a store, with an id of its own. Guests that are in it
/// already stay as they are.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Serialize)]
struct Made {
    store: PathBuf,
    uuid: String,
    created: String,
}

pub(super) fn run(Args {}: &Args, global: &Global, output: &Output) -> Result<Outcome> {
    let path = global.store_path()?;
    let marker = Store::init(path)?;
    let made = Made { store: path.to_owned(), uuid: marker.uuid.to_string(), created: marker.created.to_string() };
    output.print(&made, |made| {
        format!("made the store {} in {}\n", made.uuid, printable(&made.store.display().to_string()))
    })?;
    Ok(Outcome::Done)
}
