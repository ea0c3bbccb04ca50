//! What every `backup` command takes and does, whatever it backs up.

use std::path::PathBuf;
use std::str::FromStr;

use signal_hook::iterator::Signals;

use super::super::output::Output;
use super::super::{Outcome, signals};
use crate::base::{Error, ErrorKind, Result};
use crate::catalog::GuestId;
use crate::ingest::{Finished, Interrupt, KeptFile};

/// Files to keep with a backup.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// The guest's configuration, kept as guest.conf
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The guest's firewall configuration, kept as firewall.conf
    #[arg(long, value_name = "FILE")]
    firewall_config: Option<PathBuf>,
    /// Another file to keep with the backup, and its name there (domain.xml=/run/vm.xml); may be given more than once
    #[arg(long = "attach", value_name = "NAME=FILE", value_parser = parse_attachment)]
    attachments: Vec<KeptFile>,
}

impl Files {
    /// All of them, with their names in the backup.
    pub(super) fn kept(self) -> Vec<KeptFile> {
        let named = |name: &str, path: Option<PathBuf>| path.map(|path| KeptFile { name: name.to_owned(), path });
        let files = named("guest.conf", self.config).into_iter().chain(named("firewall.conf", self.firewall_config));
        files.chain(self.attachments).collect()
    }
}

/// The guest whose backup is to be made.
///
/// The id often comes from elsewhere, and one that leads out of the store is refused as any other name that does (exit code 1):
/// that is no slip of the keyboard which a look at the usage would mend.
pub(super) fn guest_id(text: &str) -> Result<GuestId> {
    text.parse().map_err(|e: Error| Error::new(ErrorKind::Refused, e.to_string()))
}

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u64);

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => 64,
        };
        let number =
            digits.parse().ok().filter(|number: &u64| *number > 0 && digits.bytes().all(|b| b.is_ascii_digit()));
        let rate = number.and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
        rate.map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("'{text}' is not a number of bytes a second, such as 500K or 20M"))
        })
    }
}

fn parse_attachment(text: &str) -> Result<KeptFile> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok(KeptFile { name: name.to_owned(), path: path.into() })
        }
        _ => Err(Error::new(ErrorKind::Usage, format!("'{text}' is not NAME=FILE"))),
    }
}

/// The first signal ends the run in order; a second one ends the process.
pub(super) fn listen_to_signals(interrupt: &Interrupt) -> Result<()> {
    let mut signals = Signals::new(signals::of_a_terminal()).map_err(|e| Error::io("cannot listen to signals", e))?;
    let interrupt = interrupt.clone();
    let listen = move || {
        let mut again = false;
        for signal in signals.forever() {
            if again {
                // There is nothing left to do when even that fails.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            again = true;
            interrupt.raise();
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(listen);
    thread.map(drop).map_err(|e| Error::io("cannot start a thread", e))
}

/// Prints what was made, unless the events have told it, and gives the outcome.
///
/// The backup is there by now, whatever becomes of the words about it: that they cannot be printed is no failure of the run.
pub(super) fn tell_end(
    finished: &Finished,
    told: bool,
    output: &Output,
    text: impl FnOnce(&Finished) -> String,
) -> Outcome {
    if !told && let Err(e) = output.print(finished, text) {
        output.error(&e);
        return Outcome::Broken;
    }
    if finished.warnings.is_empty() { Outcome::Done } else { Outcome::Broken }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units_of_1024() {
        for (text, rate) in [("1", 1), ("500K", 500 << 10), ("20M", 20 << 20), ("3g", 3 << 30), ("1T", 1 << 40)] {
            assert_eq!(text.parse::<Rate>().unwrap(), Rate(rate), "{text}");
        }
        for bad in ["", "0", "M", "-1", "1.5M", "1MB", "1 M", "+1", "99999999999999T", "18446744073709551616"] {
            assert_eq!(bad.parse::<Rate>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
