//! The page that comes out of it.

use std::path::Path;

use crate::Scale;
use crate::support::tools::{command, run};

/// One figure that was to be reached.
pub(crate) struct Row {
    text: String,
    met: bool,
}

impl Row {
    /// A ratio that is to be at least `target`.
    pub(crate) fn at_least(figure: &str, target: f64, of: &str, ratio: f64) -> Self {
        Self::new(figure, &format!("≥ {target} × {of}"), &format!("{ratio:.2} ×"), ratio >= target)
    }

    pub(crate) fn new(figure: &str, target: &str, measured: &str, met: bool) -> Self {
        let verdict = if met { "yes" } else { "**no**" };
        Self { text: format!("| {figure} | {target} | {measured} | {verdict} |"), met }
    }
}

/// What belongs to one part of the run.
struct Section {
    title: String,
    intro: String,
    rows: Vec<Row>,
    notes: Vec<String>,
    tables: Vec<(String, String)>,
}

pub(crate) struct Report {
    head: String,
    /// How busy the machine was before anything was measured.
    load: String,
    sections: Vec<Section>,
}

impl Report {
    pub(crate) fn new(scale: Scale, work: &Path) -> Self {
        let head = format!(
            "# Benchmarks\n\n\
             Written by `make bench` on {date}, annals {version}; the next run writes it anew.\n\n\
             Machine: {machine}, {kernel}; the images on {file_system}. {qemu}.\n\n\
             All sides take turns, {turns} each; every daemon is started anew for its turn. *Cold* is right after the kernel's caches\n\
             were emptied. A ratio is the median of those of neighbouring turns. Absolute figures hold for this machine and this hour\n\
             alone.\n",
            date = run("date", &["-u", "+%Y-%m-%d"]).trim(),
            version = env!("CARGO_PKG_VERSION"),
            machine = machine(),
            kernel = kernel(),
            file_system = run("df", &["--output=fstype", work.to_str().unwrap()]).lines().nth(1).unwrap_or_default(),
            qemu = run("qemu-storage-daemon", &["--version"]).lines().next().unwrap_or_default(),
            turns = scale.turns,
        );
        Self { head, load: load(), sections: Vec::new() }
    }

    /// Begins a part: what follows belongs to it.
    pub(crate) fn section(&mut self, title: &str, intro: &str) {
        self.sections.push(Section {
            title: title.to_owned(),
            intro: intro.to_owned(),
            rows: Vec::new(),
            notes: Vec::new(),
            tables: Vec::new(),
        });
    }

    fn current(&mut self) -> &mut Section {
        self.sections.last_mut().expect("a part has begun")
    }

    pub(crate) fn row(&mut self, row: Row) {
        eprintln!("{}", row.text);
        self.current().rows.push(row);
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.current().notes.push(note.to_owned());
    }

    pub(crate) fn table(&mut self, title: &str, text: String) {
        self.current().tables.push((title.to_owned(), text));
    }

    pub(crate) fn page(&self) -> String {
        let rows = || self.sections.iter().flat_map(|section| &section.rows);
        let met = rows().filter(|row| row.met).count();
        let mut page = format!(
            "{}\n{met} of {} figures met. Load of the machine over the last minute: {} before the run, {} after it; before a run it\n\
             should be near 0, or others had a share of what was measured.\n",
            self.head,
            rows().count(),
            self.load,
            load()
        );
        for section in &self.sections {
            page.push_str(&format!("\n## {}\n\n{}\n", section.title, section.intro));
            page.push_str("\n| figure | to reach | measured | met |\n| --- | --- | --- | --- |\n");
            for row in &section.rows {
                page.push_str(&row.text);
                page.push('\n');
            }
            for note in &section.notes {
                page.push_str(&format!("\n{note}\n"));
            }
            for (title, text) in &section.tables {
                page.push_str(&format!("\n### {title}\n\n{text}"));
            }
        }
        page
    }
}

/// Processes that wanted to run, on average of the last minute.
fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().unwrap_or_default().to_owned()
}

/// The kernel's version, without what its builder added to it.
fn kernel() -> String {
    let version = run("uname", &["-r"]);
    format!("Linux {}", version.trim().split('-').next().unwrap_or_default())
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
