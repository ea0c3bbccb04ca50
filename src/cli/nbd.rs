//! `annals nbd`: what an NBD server offers to back up.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::Outcome;
use super::output::{Output, Tone, printable, size};
use crate::base::{Error, Result};
use crate::nbd::{Details, HeaderStyle, ListedExport, Options, Uri, list};

/// Ask an NBD server what it offers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Info(InfoArgs),
}

/// List a server's exports: size, flags, block sizes, meta contexts
///
/// A URI without an export's name lists all that the server has. Certificates for nbds:// and nbds+unix:// are the files
/// ca-cert.pem, client-cert.pem and client-key.pem of the directory that tls-certificates=DIR in the URI names.
#[derive(Debug, clap::Args)]
struct InfoArgs {
    /// Where: nbd://HOST:PORT/EXPORT (port 10809 unless given), nbd+unix:///EXPORT?socket=PATH, nbds://…, nbds+unix://…
    uri: String,
    /// Give up after so many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

#[derive(Serialize)]
struct Server {
    uri: String,
    tls: bool,
    /// `simple`, `structured` or `extended`.
    headers: &'static str,
    exports: Vec<Export>,
}

#[derive(Serialize)]
struct Export {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(flatten)]
    details: Option<ExportDetails>,
    /// Why the server tells nothing about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Serialize)]
struct ExportDetails {
    /// Bytes.
    size: u64,
    flags: Vec<&'static str>,
    /// In bytes; absent where the server says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_sizes: Option<Sizes>,
    contexts: Vec<String>,
}

#[derive(Serialize)]
struct Sizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

pub(super) fn run(args: &Args, output: &Output) -> Result<Outcome> {
    match &args.command {
        Command::Info(args) => info(args, output),
    }
}

fn info(args: &InfoArgs, output: &Output) -> Result<Outcome> {
    let uri = Uri::parse(&args.uri)?;
    let options = Options { handshake_timeout: Duration::from_secs(args.timeout), ..Options::default() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("cannot start what waits for the network", e))?;
    let listing = runtime.block_on(list(&uri, &options));
    // The look-up of a host's name cannot be called off; it must not keep the program.
    runtime.shutdown_background();
    let listing = listing?;
    let server = Server {
        uri: uri.to_string(),
        tls: listing.tls,
        headers: match listing.headers {
            HeaderStyle::Simple => "simple",
            HeaderStyle::Structured => "structured",
            HeaderStyle::Extended => "extended",
        },
        exports: listing.exports.into_iter().map(Export::from).collect(),
    };
    output.print(&server, |server| text(server, output))?;
    let broken = server.exports.iter().any(|export| export.problem.is_some());
    Ok(if broken { Outcome::Broken } else { Outcome::Done })
}

impl From<ListedExport> for Export {
    fn from(listed: ListedExport) -> Self {
        let ListedExport { name, description, details } = listed;
        let (details, problem) = match details {
            Ok(Details { size, flags, block_sizes, contexts }) => {
                let block_sizes = block_sizes.map(|sizes| Sizes {
                    minimum: sizes.minimum,
                    preferred: sizes.preferred,
                    maximum: sizes.maximum,
                });
                (
                    Some(ExportDetails {
                        size,
                        flags: flags.names().filter(|name| *name != "has-flags").collect(),
                        block_sizes,
                        contexts,
                    }),
                    None,
                )
            }
            Err(e) => (None, Some(e.report())),
        };
        Self { name, description, details, problem }
    }
}

fn text(server: &Server, output: &Output) -> String {
    let tls = if server.tls { "TLS" } else { "not encrypted" };
    let mut text = format!("{}: {tls}, {} replies\n", printable(&server.uri), server.headers);
    if server.exports.is_empty() {
        text += "no exports\n";
    }
    for export in &server.exports {
        let name = format!("export '{}'", printable(&export.name));
        let _ = writeln!(text, "\n{}", output.paint(Tone::Strong, &name));
        if !export.description.is_empty() {
            let _ = writeln!(text, "  description  {}", printable(&export.description));
        }
        if let Some(details) = &export.details {
            let _ = writeln!(text, "  size         {} ({} bytes)", size(details.size), details.size);
            let _ = writeln!(text, "  flags        {}", details.flags.join(" "));
            let sizes = match &details.block_sizes {
                None => "not stated: requests keep to 512 bytes and 32 MiB".to_owned(),
                Some(sizes) => {
                    format!("minimum {}, preferred {}, maximum {}", sizes.minimum, sizes.preferred, sizes.maximum)
                }
            };
            let _ = writeln!(text, "  block sizes  {sizes}");
            for (at, context) in details.contexts.iter().enumerate() {
                let heading = if at == 0 { "contexts" } else { "" };
                let _ = writeln!(text, "  {heading:12} {}", printable(context));
            }
        }
        if let Some(problem) = &export.problem {
            let _ = writeln!(text, "  {}", output.paint(Tone::Bad, &printable(problem)));
        }
    }
    text
}
