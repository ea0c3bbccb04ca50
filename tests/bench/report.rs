//! The page that comes out of it.

use std::path::Path;

use crate::Scale;
use crate::sides::CACHE;
use crate::support::tools::{command, run};

/// One figure that was to be reached.
pub(crate) struct Row {
    text: String,
    met: bool,
}

impl Row {
    pub(crate) fn new(figure: &str, target: &str, measured: &str, met: bool) -> Self {
        let verdict = if met { "yes" } else { "**no**" };
        Self { text: format!("| {figure} | {target} | {measured} | {verdict} |"), met }
    }
}

pub(crate) struct Report {
    head: String,
    /// How busy the machine was before anything was measured.
    load: String,
    rows: Vec<Row>,
    notes: Vec<String>,
    tables: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(scale: Scale, work: &Path) -> Self {
        let head = format!(
            "# Benchmarks\n\n\
             Written by `make bench` on {date}, annals {version}; the next run writes it anew.\n\n\
             Machine: {machine}, {kernel}; the images on {file_system}. {qemu}.\n\n\
             A disk of {disk} MiB, half of it random bytes; each layer up to the hundredth rewrites 1 % of its clusters. The native raw file,\n\
             qemu-storage-daemon's FUSE export and the mount (`--cache-size {CACHE}`) take turns, {turns} each; every daemon is started anew\n\
             for its turn. *Cold* is right after the kernel's caches were emptied. A ratio is the median of those of neighbouring turns.\n\
             Absolute figures hold for this machine and this hour alone.\n",
            date = run("date", &["-u", "+%Y-%m-%d"]).trim(),
            version = env!("CARGO_PKG_VERSION"),
            machine = machine(),
            kernel = run("uname", &["-sr"]).trim(),
            file_system = run("df", &["--output=fstype", work.to_str().unwrap()]).lines().nth(1).unwrap_or_default(),
            qemu = run("qemu-storage-daemon", &["--version"]).lines().next().unwrap_or_default(),
            disk = scale.disk >> 20,
            turns = scale.turns,
        );
        Self { head, load: load(), rows: Vec::new(), notes: Vec::new(), tables: Vec::new() }
    }

    pub(crate) fn row(&mut self, row: Row) {
        eprintln!("{}", row.text);
        self.rows.push(row);
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    pub(crate) fn table(&mut self, title: &str, text: String) {
        self.tables.push((title.to_owned(), text));
    }

    pub(crate) fn page(&self) -> String {
        let mut page = format!("{}\n| figure | to reach | measured | met |\n| --- | --- | --- | --- |\n", self.head);
        for row in &self.rows {
            page.push_str(&row.text);
            page.push('\n');
        }
        let met = self.rows.iter().filter(|row| row.met).count();
        page.push_str(&format!("\n{met} of {} met.\n", self.rows.len()));
        page.push_str(&format!(
            "\nLoad of the machine over the last minute: {} before the run, {} after it. Before a run it should be near 0, or others\n\
             had a share of what was measured.\n",
            self.load,
            load()
        ));
        for note in &self.notes {
            page.push_str(&format!("\n{note}\n"));
        }
        for (title, text) in &self.tables {
            page.push_str(&format!("\n## {title}\n\n{text}"));
        }
        page
    }
}

/// Processes that wanted to run, on average of the last minute.
fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().unwrap_or_default().to_owned()
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let memory = command("free").arg("-g").output().ok().and_then(|out| {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines().nth(1)?.split_whitespace().nth(1).map(|gib| format!("{gib} GiB"))
    });
    let cores = if cpus == 1 { "1 core" } else { &format!("{cpus} cores") };
    format!("{}, {cores}, {} of memory", model.unwrap_or("unknown processor"), memory.as_deref().unwrap_or("?"))
}
