//! Chains of images made by QEMU's own tools, beside a model of what they hold: the bytes in a plain vector.
//!
//! A [`Plan`] says what to make and can be printed, made smaller and written out in a test; [`Plan::random`] draws one
//! from a seed; [`Chain::make`] carries it out. The layers lie in a guest's directory as backups do:
//! `qemu-<time>/drive-scsi0.qcow2`, each backed by the one before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use annals::format::ImageFormat;

use super::random::Random;
use super::tools::{self, run};

/// What has to be installed for [`Chain::make`].
pub(crate) const TOOLS: &[&str] = &["qemu-img", "qemu-io"];

/// What a chain is made of, oldest layer first.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) layers: Vec<LayerPlan>,
}

/// One layer: an image of `size` bytes, what is done to it, and how it is left.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    pub(crate) size: u64,
    /// `None` is a raw image; only the oldest can be one.
    pub(crate) qcow2: Option<Qcow2>,
    pub(crate) ops: Vec<Op>,
    /// Its last writer is killed. With lazy refcounts that leaves it marked dirty.
    pub(crate) killed: bool,
}

/// How a qcow2 image is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Qcow2 {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) extended_l2: bool,
    pub(crate) lazy_refcounts: bool,
    pub(crate) refcount_bits: u32,
    pub(crate) zstd: bool,
    pub(crate) origin: Origin,
}

/// Where an image's first content comes from. All but `Empty` are for the oldest layer alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Empty,
    /// Every cluster has its place from the start.
    Preallocated,
    /// The operations are done to a raw image, which is then converted.
    Converted {
        compressed: bool,
    },
}

/// One thing done to an image. Ranges are cut to the image, and where QEMU wants whole clusters, to those.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Write(u64, u64, Fill),
    /// Of clusters that this layer has not written yet; QEMU compresses no others.
    WriteCompressed(u64, u64, Fill),
    /// Zeros; with `unmap` without keeping the clusters' places.
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Snapshot,
    Bitmap,
}

/// What is written: from the start of a pattern that never repeats within a cluster, or one byte throughout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    Byte(u8),
    /// Cannot be compressed.
    Noise(u8),
    /// Can.
    Text(u8),
}

impl Default for Qcow2 {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            refcount_bits: 16,
            zstd: false,
            origin: Origin::Empty,
        }
    }
}

/// The longest write; patterns are this long.
const LONGEST: u64 = 2 << 20;
/// Patterns of each sort.
const KINDS: usize = 3;

impl Plan {
    pub(crate) fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let depth = random.pick(&[1, 1, 2, 2, 3, 3, 4, 5, 7, 10]);
        let first = random_size(&mut random);
        let mut layers: Vec<LayerPlan> = Vec::new();
        for index in 0..depth {
            let size = match layers.last() {
                None => first,
                Some(below) if random.one_in(3) => match random.below(3) {
                    0 => random_size(&mut random),
                    1 => (below.size / 2).next_multiple_of(512).max(512),
                    _ => below.size + random.between(1, 4096) * 512,
                },
                Some(below) => below.size,
            };
            layers.push(random_layer(&mut random, index == 0, size));
        }
        Self { layers }
    }

    /// Plans with a little less in them, the boldest cuts first.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        for index in (0..self.layers.len()).filter(|_| self.layers.len() > 1) {
            let mut plan = self.clone();
            plan.layers.remove(index);
            plans.push(plan);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let mut with = |change: &dyn Fn(&mut LayerPlan)| {
                let mut plan = self.clone();
                change(&mut plan.layers[index]);
                plans.push(plan);
            };
            let half = layer.ops.len() / 2;
            if half > 0 {
                with(&|layer| layer.ops.truncate(half));
                with(&|layer| layer.ops = layer.ops.split_off(half));
            }
            if layer.killed {
                with(&|layer| layer.killed = false);
            }
            for op in 0..layer.ops.len() {
                with(&|layer| {
                    layer.ops.remove(op);
                });
            }
        }
        // Only an oldest layer can be raw or converted; taking it away leaves the next one as it is.
        plans.retain(|plan| plan.layers[1..].iter().all(|l| l.qcow2.is_some_and(|q| q.origin == Origin::Empty)));
        plans
    }
}

/// Sizes of zero to some MiB, most of them no multiple of any cluster.
fn random_size(random: &mut Random) -> u64 {
    let sectors = match random.below(12) {
        0 => random.between(0, 3),
        1..4 => random.between(1, 2000),
        4..9 => random.between(2000, 12_000),
        _ => random.between(12_000, 30_000),
    };
    if random.one_in(4) { (sectors * 512).next_multiple_of(1 << 16) } else { sectors * 512 }
}

fn random_layer(random: &mut Random, oldest: bool, size: u64) -> LayerPlan {
    let qcow2 = (!(oldest && random.one_in(4))).then(|| random_qcow2(random, oldest));
    let cluster = qcow2.map_or(4096, |q| 1 << q.cluster_bits);
    let ops = (0..random.between(0, 14)).map(|_| random_op(random, size, cluster)).collect();
    LayerPlan { size, qcow2, ops, killed: random.one_in(6) }
}

fn random_qcow2(random: &mut Random, oldest: bool) -> Qcow2 {
    let origin = if !oldest {
        Origin::Empty
    } else {
        match random.below(8) {
            0 => Origin::Preallocated,
            1 => Origin::Converted { compressed: false },
            2 | 3 => Origin::Converted { compressed: true },
            _ => Origin::Empty,
        }
    };
    if random.one_in(5) {
        let cluster_bits = random.pick(&[9, 10, 12, 16, 16, 18, 21]);
        return Qcow2 { version: 2, cluster_bits, origin, ..Qcow2::default() };
    }
    let extended_l2 = random.one_in(3);
    let cluster_bits = if extended_l2 {
        random.between(14, 21) as u32
    } else {
        random.pick(&[9, 9, 10, 11, 12, 13, 14, 15, 16, 16, 17, 19, 21])
    };
    Qcow2 {
        version: 3,
        cluster_bits,
        extended_l2,
        lazy_refcounts: random.one_in(3),
        refcount_bits: random.pick(&[1, 2, 4, 8, 16, 16, 16, 32, 64]),
        zstd: random.one_in(2),
        origin,
    }
}

fn random_op(random: &mut Random, size: u64, cluster: u64) -> Op {
    let at = random.below(size.max(1));
    let len = match random.below(5) {
        0 => random.between(1, 4096),
        1 => random.between(1, 65536),
        2 => cluster,
        3 => cluster * random.between(1, 40),
        _ => random.between(1, size.max(1)),
    }
    .min(LONGEST);
    let (at, len) = if random.one_in(3) { (at, len) } else { (at / cluster * cluster, len.next_multiple_of(512)) };
    let fill = match random.below(4) {
        0 => Fill::Byte(random.between(0, 255) as u8),
        1 => Fill::Noise(random.below(KINDS as u64) as u8),
        _ => Fill::Text(random.below(KINDS as u64) as u8),
    };
    match random.below(16) {
        0..6 => Op::Write(at, len, fill),
        6..10 => Op::WriteCompressed(at, len, fill),
        10..13 => Op::Zero(at, len, random.one_in(2)),
        13 => Op::Discard(at, len),
        14 => Op::Snapshot,
        _ => Op::Bitmap,
    }
}

/// A chain on disk, and what it holds.
#[derive(Debug)]
pub(crate) struct Chain {
    /// The guest's directory.
    pub(crate) guest: PathBuf,
    /// Oldest first.
    pub(crate) layers: Vec<Layer>,
}

/// One layer of a [`Chain`].
#[derive(Debug)]
pub(crate) struct Layer {
    /// Its file, beneath the guest's directory.
    pub(crate) path: String,
    pub(crate) format: ImageFormat,
    /// The disk as this layer shows it.
    pub(crate) content: Vec<u8>,
}

impl Chain {
    /// Makes the images in `guest`, a directory that is there and empty.
    pub(crate) fn make(plan: &Plan, guest: &Path) -> Self {
        let mut chain = Self { guest: guest.to_owned(), layers: Vec::new() };
        for (index, layer) in plan.layers.iter().enumerate() {
            let suffix = if layer.qcow2.is_some() { "qcow2" } else { "raw" };
            let directory = format!("qemu-2024-11-{:02}T{:02}-00-00Z", 1 + index / 24, index % 24);
            std::fs::create_dir(guest.join(&directory)).unwrap();
            let path = format!("{directory}/drive-scsi0.{suffix}");
            let layer = Maker::new(&chain, guest.join(&path), layer).make(path);
            chain.layers.push(layer);
        }
        // The patterns were only for qemu-io to read.
        for pattern in std::fs::read_dir(guest).unwrap().flatten().filter(|e| e.path().is_file()) {
            std::fs::remove_file(pattern.path()).unwrap();
        }
        chain
    }

    pub(crate) fn head(&self) -> &Layer {
        self.layers.last().expect("a chain has a layer")
    }

    /// The disk of a layer as `qemu-img convert` reads it.
    pub(crate) fn converted(&self, layer: &Layer) -> Vec<u8> {
        let out = self.guest.join("converted");
        let image = self.guest.join(&layer.path);
        run("qemu-img", &["convert", "-f", layer.format.name(), "-O", "raw", text(&image), text(&out)]);
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        bytes
    }

    /// The ranges of a layer's disk that `qemu-img map` says are stored somewhere, as (start, end).
    pub(crate) fn mapped(&self, layer: &Layer) -> Vec<(u64, u64)> {
        let image = self.guest.join(&layer.path);
        let json = run("qemu-img", &["map", "-f", layer.format.name(), "--output=json", text(&image)]);
        let extents: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for extent in extents.iter().filter(|extent| extent["data"] == true) {
            let start = extent["start"].as_u64().unwrap();
            let end = start + extent["length"].as_u64().unwrap();
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start, end)),
            }
        }
        ranges
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is UTF-8")
}

/// Carries out the plan of one layer.
struct Maker<'a> {
    plan: &'a LayerPlan,
    file: PathBuf,
    below: Option<&'a Layer>,
    /// Where the patterns are kept.
    guest: &'a Path,
    content: Vec<u8>,
    /// Clusters that have a place in this layer.
    touched: BTreeSet<u64>,
    /// Commands for qemu-io that are not carried out yet.
    commands: Vec<String>,
    names: u32,
}

impl<'a> Maker<'a> {
    fn new(chain: &'a Chain, file: PathBuf, plan: &'a LayerPlan) -> Self {
        let below = chain.layers.last();
        let mut content = below.map(|layer| layer.content.clone()).unwrap_or_default();
        content.resize(plan.size as usize, 0);
        let preallocated = plan.qcow2.filter(|q| q.origin == Origin::Preallocated);
        let clusters = preallocated.map_or(0, |q| plan.size.div_ceil(1 << q.cluster_bits));
        let (touched, commands) = ((0..clusters).collect(), Vec::new());
        Self { plan, file, below, guest: &chain.guest, content, touched, commands, names: 0 }
    }

    fn make(mut self, path: String) -> Layer {
        match self.plan.qcow2 {
            None => {
                self.create_raw(&self.file.clone());
                self.work("raw");
            }
            Some(Qcow2 { origin: Origin::Converted { compressed }, .. }) => {
                let raw = self.file.with_extension("tmp");
                self.create_raw(&raw);
                let file = std::mem::replace(&mut self.file, raw.clone());
                self.work("raw");
                self.file = file;
                let options = self.options();
                let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
                args.extend(compressed.then_some("-c"));
                run("qemu-img", &[&args[..], &[text(&raw), text(&self.file)]].concat());
                std::fs::remove_file(raw).unwrap();
            }
            Some(_) => {
                let (options, size) = (self.options(), self.plan.size.to_string());
                let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
                let backing = self.below.map(|below| format!("../{}", below.path));
                if let (Some(backing), Some(below)) = (&backing, self.below) {
                    args.extend(["-b", backing, "-F", below.format.name()]);
                }
                run("qemu-img", &[&args[..], &[text(&self.file), &size]].concat());
                self.work("qcow2");
            }
        }
        let format = if self.plan.qcow2.is_some() { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        Layer { path, format, content: self.content }
    }

    fn create_raw(&self, file: &Path) {
        run("qemu-img", &["create", "-q", "-f", "raw", text(file), &self.plan.size.to_string()]);
    }

    fn options(&self) -> String {
        let Some(q) = self.plan.qcow2 else { return String::new() };
        let mut options = format!("cluster_size={}", 1u64 << q.cluster_bits);
        if q.version == 2 {
            options.push_str(",compat=0.10");
        } else {
            let on = |flag| if flag { "on" } else { "off" };
            options.push_str(&format!(
                ",compat=1.1,extended_l2={},lazy_refcounts={},refcount_bits={},compression_type={}",
                on(q.extended_l2),
                on(q.lazy_refcounts),
                q.refcount_bits,
                if q.zstd { "zstd" } else { "zlib" }
            ));
        }
        if q.origin == Origin::Preallocated {
            options.push_str(",preallocation=metadata");
        }
        options
    }

    fn cluster(&self) -> u64 {
        self.plan.qcow2.map_or(1, |q| 1 << q.cluster_bits)
    }

    /// Does all of the plan's operations to an image of `format`.
    fn work(&mut self, format: &str) {
        let qcow2 = if format == "qcow2" { self.plan.qcow2 } else { None };
        for op in &self.plan.ops {
            match *op {
                Op::Write(at, len, fill) => self.write(at, len, fill, ""),
                Op::WriteCompressed(at, len, fill) => match qcow2 {
                    Some(_) => self.write_compressed(at, len, fill),
                    None => self.write(at, len, fill, ""),
                },
                Op::Zero(at, len, unmap) => {
                    let (at, end) = self.cut(at, len);
                    self.command(at, end, if unmap { "write -q -z -u" } else { "write -q -z" });
                    self.fill(at, end, Fill::Byte(0));
                }
                Op::Discard(at, len) => self.discard(at, len, qcow2),
                Op::Snapshot if qcow2.is_some_and(|q| self.can_count_a_snapshot(q)) => {
                    self.flush(format, false);
                    self.names += 1;
                    run("qemu-img", &["snapshot", "-q", "-c", &format!("s{}", self.names), text(&self.file)]);
                }
                Op::Bitmap if qcow2.is_some_and(|q| q.version > 2) && self.plan.size > 0 => {
                    self.flush(format, false);
                    self.names += 1;
                    run("qemu-img", &["bitmap", "--add", text(&self.file), &format!("b{}", self.names)]);
                }
                Op::Snapshot | Op::Bitmap => {}
            }
        }
        self.flush(format, self.plan.killed && qcow2.is_some());
    }

    /// Whether no cluster gets more users than the image can count: every snapshot is one, and so is every compressed
    /// cluster that lies in it.
    fn can_count_a_snapshot(&self, qcow2: Qcow2) -> bool {
        let shared = self.plan.ops.iter().any(|op| matches!(op, Op::WriteCompressed(..)));
        match qcow2.refcount_bits {
            1 => false,
            2 | 4 => self.names == 0 && !shared,
            8 => self.names < 4 && !(shared && qcow2.cluster_bits > 12),
            _ => true,
        }
    }

    /// The part of a range that lies in the image.
    fn cut(&self, at: u64, len: u64) -> (u64, u64) {
        let at = at.min(self.plan.size);
        (at, at.saturating_add(len.min(LONGEST)).min(self.plan.size))
    }

    fn command(&mut self, at: u64, end: u64, what: &str) {
        if at < end {
            self.commands.push(format!("{what} {at} {}", end - at));
            let cluster = self.cluster();
            self.touched.extend(at / cluster..end.div_ceil(cluster));
        }
    }

    fn write(&mut self, at: u64, len: u64, fill: Fill, flags: &str) {
        let (at, end) = self.cut(at, len);
        let source = match fill {
            Fill::Byte(byte) => format!("-P {byte}"),
            Fill::Noise(_) | Fill::Text(_) => format!("-s {}", text(&self.pattern(fill))),
        };
        self.command(at, end, &format!("write -q {flags} {source}"));
        self.fill(at, end, fill);
    }

    fn write_compressed(&mut self, at: u64, len: u64, fill: Fill) {
        let cluster = self.cluster();
        let first = at / cluster;
        let (_, end) = self.cut(first * cluster, len.max(cluster));
        // QEMU takes a last piece that is shorter than a cluster only at the end of the image.
        let last = if end == self.plan.size { end.div_ceil(cluster) } else { end / cluster };
        let free: Vec<u64> = (first..last).take_while(|c| !self.touched.contains(c)).collect();
        let len = (free.len() as u64 * cluster).min(self.plan.size.saturating_sub(first * cluster));
        self.write(first * cluster, len, fill, "-c");
    }

    fn discard(&mut self, at: u64, len: u64, qcow2: Option<Qcow2>) {
        let unit = self.cluster().max(4096);
        let (at, end) = self.cut(at / unit * unit, len.next_multiple_of(unit));
        let end = if end == self.plan.size { end } else { end / unit * unit };
        self.command(at, end, "discard -q");
        // Version 2 has no zero clusters: what lies below would show, so QEMU does nothing.
        if qcow2.is_none_or(|q| q.version > 2 || self.below.is_none()) {
            self.fill(at, end.max(at), Fill::Byte(0));
        }
    }

    fn fill(&mut self, at: u64, end: u64, fill: Fill) {
        let into = &mut self.content[at as usize..end as usize];
        match fill {
            Fill::Byte(byte) => into.fill(byte),
            Fill::Noise(_) | Fill::Text(_) => into.copy_from_slice(&pattern_bytes(fill)[..into.len()]),
        }
    }

    /// The file of a pattern, made when it is first asked for.
    fn pattern(&self, fill: Fill) -> PathBuf {
        let file = self.guest.join(format!("{fill:?}").replace(['(', ')'], ""));
        if !file.exists() {
            std::fs::write(&file, pattern_bytes(fill)).unwrap();
        }
        file
    }

    /// Carries out the commands; a killed writer leaves what it has flushed.
    fn flush(&mut self, format: &str, killed: bool) {
        let mut commands = std::mem::take(&mut self.commands);
        if commands.is_empty() {
            return;
        }
        commands.push("flush".to_owned());
        commands.extend(killed.then(|| "sigraise 9".to_owned()));
        let mut args = vec!["-f", format, "-d", "unmap"];
        args.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
        args.push(text(&self.file));
        let output = tools::command("qemu-io").args(&args).output().expect("qemu-io starts");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), !killed, "qemu-io {args:?}: {said}");
        assert!(!said.contains("failed"), "qemu-io {args:?}: {said}");
    }
}

/// The bytes of a pattern, as many as the longest write has.
fn pattern_bytes(fill: Fill) -> &'static [u8] {
    static PATTERNS: OnceLock<[Vec<u8>; 2 * KINDS]> = OnceLock::new();
    let patterns = PATTERNS
        .get_or_init(|| std::array::from_fn(|index| if index < KINDS { noise(index as u64) } else { lines(index) }));
    match fill {
        Fill::Byte(_) => &[],
        Fill::Noise(kind) => &patterns[usize::from(kind) % KINDS],
        Fill::Text(kind) => &patterns[KINDS + usize::from(kind) % KINDS],
    }
}

fn noise(seed: u64) -> Vec<u8> {
    Random::new(seed).bytes(LONGEST as usize)
}

fn lines(kind: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(LONGEST as usize + 64);
    let mut line = 0;
    while text.len() < LONGEST as usize {
        text.extend_from_slice(format!("{kind}: line {line} of many that are nearly the same\n").as_bytes());
        line += 1;
    }
    text.truncate(LONGEST as usize);
    text
}
