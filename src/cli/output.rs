//! What commands print, and how: JSON or text, colour only where somebody sees it, nothing that a terminal would obey.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::base::{Error, ErrorKind, Result};

/// Where a command's results go.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    colour: bool,
}

/// A meaning that text may have; on a terminal it has a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// A heading.
    Strong,
    /// Something is wrong.
    Bad,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json, colour: !json && colour_wanted(&io::stdout()) }
    }

    /// Prints `value` as JSON, or the text that `text` makes of it.
    pub(super) fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            let mut json = serde_json::to_string_pretty(value)
                .map_err(|e| Error::new(ErrorKind::Io, "cannot write the result as JSON").with_source(e))?;
            json.push('\n');
            return self.write(json.as_bytes());
        }
        self.write(text(value).as_bytes())
    }

    /// Writes bytes to standard output. A reader that has seen enough (`| head`) is no error.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("cannot write to standard output", e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Prints an error and what to do about it to standard error.
    pub(super) fn error(&self, error: &Error) {
        let colour = colour_wanted(&io::stderr());
        let mut text = format!("annals: {}: {}\n", paint(colour, Tone::Bad, "error"), printable(&error.report()));
        if let Some(hint) = error.hint() {
            let _ = writeln!(text, "{}: {}", paint(colour, Tone::Strong, "hint"), printable(hint));
        }
        // There is nowhere left to say that this failed.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// `text` in the colour of its meaning.
    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.colour, tone, text)
    }

    /// Rows with their columns aligned, under headings.
    pub(super) fn table<const N: usize>(&self, headings: [&str; N], rows: &[[String; N]]) -> String {
        let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let line = |cells: [&str; N]| {
            let mut line = String::new();
            for (cell, width) in cells.into_iter().zip(widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            line.trim_end().to_owned()
        };
        let mut text = self.paint(Tone::Strong, &line(headings)) + "\n";
        for row in &rows {
            text += &line(row.each_ref().map(String::as_str));
            text.push('\n');
        }
        text
    }
}

/// Prints what clap has to say: help and the version to standard output, an error to standard error like every other.
pub(super) fn clap_message(message: &clap::Error) {
    if !message.use_stderr() {
        // A reader that has seen enough is no error.
        let _ = message.print();
        return;
    }
    let text = message.render();
    let text = if colour_wanted(&io::stderr()) { text.ansi().to_string() } else { text.to_string() };
    let _ = io::stderr().lock().write_all(format!("annals: {text}").as_bytes());
}

/// A line on the terminal that says how far a long command has come; nothing where standard error is no terminal.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Starts the line; `what` stands before the numbers.
    pub(super) fn start(what: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
        let style = ProgressStyle::with_template("{prefix} {pos} of {len} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what);
        Self(Some(bar))
    }

    /// Says which part of the work it is.
    pub(super) fn part(&self, name: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(printable(&name));
        }
    }

    /// So many are done of so many.
    pub(super) fn set(&self, done: usize, of: usize) {
        if let Some(bar) = &self.0 {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Whether `stream` is a terminal whose user has not asked for no colours (<https://no-color.org>).
pub(super) fn colour_wanted(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

fn paint(colour: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Strong => "1",
        Tone::Bad => "1;31",
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` with everything spelled out that a terminal would act on: names and notes in a store are anybody's.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Controls, and the marks that turn the direction of writing around.
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A size for people: `1.5 GiB`; below a kibibyte the exact number.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scale = 1024u64;
    // The next unit also where rounding would print 1024 of this one.
    while unit + 1 < UNITS.len() && u128::from(bytes) * 20 >= u128::from(scale) * 1024 * 20 - u128::from(scale) {
        scale *= 1024;
        unit += 1;
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(scale) / 2) / u128::from(scale);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {}", UNITS[unit]),
        (whole, tenth) => format!("{whole}.{tenth} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_naturally() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (500 << 30, "500 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\nd é"), "a\\u{1b}[2Jb\\u{202e}c\\u{a}d é");
    }

    #[test]
    fn columns_line_up_under_their_headings() {
        let output = Output { json: false, colour: false };
        let rows = [["100".to_owned(), "1".to_owned()], ["web01".to_owned(), "20".to_owned()]];
        assert_eq!(output.table(["GUEST", "BACKUPS"], &rows), "GUEST  BACKUPS\n100    1\nweb01  20\n");
    }
}
