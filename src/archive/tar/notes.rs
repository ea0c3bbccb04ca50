//! What a reading of an archive has to report, bounded.

/// Lines about what is not shown or not shown as it is stored.
#[derive(Debug, Default)]
pub(super) struct Notes {
    lines: Vec<String>,
    more: u64,
}

/// How many lines are kept; the others are counted.
const KEPT: usize = 200;
/// Most bytes of a name in a line.
const SHOWN: usize = 256;

impl Notes {
    /// Notes something about the archive itself at byte `at`.
    pub(super) fn archive(&mut self, at: u64, what: &str) {
        self.line(|| format!("byte {at}: {what}"));
    }

    /// Notes something about the member `name` whose header is at byte `at`.
    pub(super) fn member(&mut self, at: u64, name: &[u8], what: &str) {
        self.line(|| format!("byte {at}: {}: {what}", quoted(name)));
    }

    fn line(&mut self, text: impl FnOnce() -> String) {
        if self.lines.len() < KEPT {
            self.lines.push(text());
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// All of it, one note a line; empty when there is none.
    pub(super) fn report(mut self) -> String {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines.join("\n")
    }
}

/// A name of any bytes in quotes, cut where it is long.
pub(super) fn quoted(name: &[u8]) -> String {
    let shown = name.get(..SHOWN).unwrap_or(name);
    let more = if shown.len() < name.len() { "…" } else { "" };
    format!("'{}'{more}", String::from_utf8_lossy(shown).escape_debug())
}
