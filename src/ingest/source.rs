//! Where a disk's bytes come from: an NBD export, or a file or block device at hand.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{Known, Plan, Planner, Widening};
use crate::base::error::ResultExt as _;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::disk::Disk;
use crate::format::dirty_list;
use crate::nbd::constants::{STATE_DIRTY, STATE_ZERO};
use crate::nbd::{Client, Export, ExportFlags, Failures, Options, ReconnectPolicy, ServerError, Uri};
use crate::storage::{OutsideDisk, read_outside};

const ALLOCATION: &str = "base:allocation";

/// Where a disk is to be read from, as the caller named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// An NBD export, and the dirty bitmap that it may offer.
    Nbd {
        /// Where it is.
        uri: Box<Uri>,
        /// The bitmap's name, without `qemu:dirty-bitmap:`.
        bitmap: Option<String>,
    },
    /// A raw file or block device.
    File {
        /// Where it is.
        path: PathBuf,
        /// A list of its dirty ranges.
        dirty: Option<PathBuf>,
    },
}

/// One `--disk`: `NAME=SOURCE[,bitmap=B][,since=ID][,dirty=FILE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The disk's name in the backup.
    pub name: String,
    /// Where it is read from.
    pub source: SourceSpec,
    /// From which checkpoint on the bitmap or list counts.
    pub since: Option<String>,
}

impl FromStr for DiskSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let usage = |why: &str| Error::new(ErrorKind::Usage, format!("'{}': {why}", text.escape_debug()));
        let (name, rest) = text.split_once('=').ok_or_else(|| usage("it is not NAME=SOURCE"))?;
        let mut parts = rest.split(',');
        let place = parts.next().unwrap_or_default();
        if name.is_empty() || place.is_empty() {
            return Err(usage("it is not NAME=SOURCE"));
        }
        let (mut bitmap, mut since, mut dirty) = (None, None, None);
        for part in parts {
            let slot = match part.split_once('=') {
                Some(("bitmap", value)) if !value.is_empty() => bitmap.replace(value),
                Some(("since", value)) if !value.is_empty() => since.replace(value),
                Some(("dirty", value)) if !value.is_empty() => dirty.replace(value),
                _ => {
                    return Err(usage(&format!("'{part}' is not bitmap=NAME, since=ID or dirty=FILE"))
                        .with_hint("in a URI, a comma is written %2C"));
                }
            };
            if slot.is_some() {
                return Err(usage(&format!("'{part}' is the second of its kind")));
            }
        }
        let is_uri = place.split_once(':').is_some_and(|(scheme, _)| {
            ["nbd", "nbds", "nbd+unix", "nbds+unix"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        });
        let source = match (is_uri, bitmap, dirty) {
            (true, bitmap, None) => {
                SourceSpec::Nbd { uri: Box::new(Uri::parse(place)?), bitmap: bitmap.map(str::to_owned) }
            }
            (false, None, dirty) => SourceSpec::File { path: place.into(), dirty: dirty.map(PathBuf::from) },
            (true, _, Some(_)) => return Err(usage("an NBD export has bitmaps, not a list of dirty ranges")),
            (false, Some(_), _) => return Err(usage("a file has no bitmaps; dirty=FILE gives a list of dirty ranges")),
        };
        if since.is_some()
            && matches!(source, SourceSpec::Nbd { bitmap: None, .. } | SourceSpec::File { dirty: None, .. })
        {
            return Err(usage("since=ID says from when on a bitmap or list counts, and there is none"));
        }
        Ok(Self { name: name.to_owned(), source, since: since.map(str::to_owned) })
    }
}

/// A disk that can be read. Cheap to clone.
#[derive(Clone)]
pub enum Source {
    /// An NBD export.
    Nbd(Box<NbdSource>),
    /// A file or block device.
    File(Arc<FileSource>),
}

/// What comes of planning an increment.
#[derive(Debug)]
pub enum Increment {
    /// It can be made.
    Planned(Plan),
    /// What the disk grew by cannot be read because it is not dirty: the source gives [only what is](Source::only_dirty).
    OnlyDirty,
    /// The bitmap calls what begins here unchanged and the source calls it zeros, but the parent has something else.
    Contradiction(GuestOffset),
    /// The parent cannot be read where it had to be, for this reason.
    Unreadable(Error),
}

/// An NBD export and what it said of itself.
#[derive(Clone)]
pub struct NbdSource {
    client: Client,
    uri: Uri,
    options: Options,
    /// The meta context of the bitmap that was named.
    dirty_context: Option<String>,
    /// Whether nothing but what is dirty can be read, by what the export looks like or has shown.
    only_dirty: bool,
}

/// A file or block device, and what is dirty in it.
#[derive(Debug)]
pub struct FileSource {
    disk: OutsideDisk,
    dirty: Option<Vec<GuestRange>>,
}

/// Bytes asked of one export and not arrived yet.
const NBD_BYTES_IN_FLIGHT: u32 = 64 << 20;
/// While none is finished, commands may take this many times as long as a server may be silent.
const WHOLE_COMMAND: u32 = 5;
/// Connections to one export, where the server says that they see the same disk.
const NBD_CONNECTIONS: usize = 4;

/// How an export is talked to: with patience for a server that is silent or gone, but not without end.
fn nbd_options(patience: Duration) -> Options {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);
    let policy = move |failures: Failures, error: &Error| {
        tracing::warn!(failures = failures.count, error = error.report(), "the connection to the source was lost");
        let delay = FIRST * 2_u32.pow(failures.count.clamp(1, 16) - 1);
        (failures.lasting < patience).then(|| delay.min(LONGEST))
    };
    let defaults = Options::default();
    Options {
        max_bytes: NBD_BYTES_IN_FLIGHT,
        connections: NBD_CONNECTIONS,
        reconnect: Some(ReconnectPolicy::new(policy)),
        handshake_timeout: defaults.handshake_timeout.min(patience),
        stall_timeout: patience,
        command_timeout: patience.saturating_mul(WHOLE_COMMAND),
        ..defaults
    }
}

impl Source {
    /// Opens a source; of an export, asks which contexts it has. A server may be silent or gone for as long as `patience`.
    pub async fn open(spec: &SourceSpec, patience: Duration) -> Result<Self> {
        match spec {
            SourceSpec::Nbd { uri, bitmap } => {
                let dirty_context = bitmap.as_ref().map(|name| format!("qemu:dirty-bitmap:{name}"));
                // Allocation is not so much as mentioned before it is known whether the export can tell it: those that give
                // only what is dirty cannot.
                let contexts = vec![dirty_context.clone().unwrap_or_else(|| ALLOCATION.to_owned())];
                let options = Options { contexts, ..nbd_options(patience) };
                let client = Client::connect(uri, &options).await?;
                let only_dirty = dirty_context.is_some() && !client.export().flags.has(ExportFlags::READ_ONLY);
                Ok(Self::Nbd(Box::new(NbdSource { client, uri: Uri::clone(uri), options, dirty_context, only_dirty })))
            }
            SourceSpec::File { path, dirty } => {
                let (path, dirty) = (path.clone(), dirty.clone());
                blocking(move || {
                    let disk = OutsideDisk::open(&path)?;
                    let dirty = dirty.map(|list| {
                        let text = read_outside(&list, dirty_list::SIZE_LIMIT)?;
                        dirty_list::parse(&text, disk.size()).context(|| format!("'{}'", list.display()))
                    });
                    let dirty = dirty.transpose()?;
                    Ok(Self::File(Arc::new(FileSource { disk, dirty })))
                })
                .await
            }
        }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Nbd(source) => source.export().size,
            Self::File(source) => source.disk.size(),
        }
    }

    /// Whether the bitmap or list that was named is there.
    #[must_use]
    pub fn knows_changes(&self) -> bool {
        match self {
            Self::Nbd(source) => source.dirty_context.as_ref().is_some_and(|name| source.export().has_context(name)),
            Self::File(source) => source.dirty.is_some(),
        }
    }

    /// Whether an increment may read nothing but what is dirty.
    ///
    /// So it is with a snapshot that lives on copies made before each write, as Proxmox VE exports it: it can be written
    /// to, for trimming, where an export for libvirt's pull backups is read-only. Another export shows it only when an
    /// increment is planned.
    #[must_use]
    pub fn only_dirty(&self) -> bool {
        match self {
            Self::Nbd(source) => source.only_dirty,
            Self::File(_) => false,
        }
    }

    /// Whether ranges can be trimmed.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        match self {
            Self::Nbd(source) => {
                let flags = source.export().flags;
                flags.has(ExportFlags::SEND_TRIM) && !flags.has(ExportFlags::READ_ONLY)
            }
            Self::File(_) => false,
        }
    }

    /// Plans a full backup: whatever does not read as zeros by the source's word.
    pub async fn plan_full(&mut self, cluster: u64) -> Result<Plan> {
        let size = self.size();
        let planner = Planner::new(size, cluster, Widening::Source);
        match self {
            Self::Nbd(source) => source.plan_full(planner).await,
            Self::File(source) => {
                let source = source.clone();
                blocking(move || source.plan_full(planner)).await
            }
        }
    }

    /// Plans an increment on a parent of `parent_size` bytes; what lies beyond that is read whatever its state.
    pub async fn plan_incremental(&mut self, cluster: u64, parent: &Arc<Disk>, parent_size: u64) -> Result<Increment> {
        match self {
            Self::Nbd(source) => source.plan_incremental(cluster, parent, parent_size).await,
            Self::File(source) => source.plan_incremental(cluster, parent_size).map(Increment::Planned),
        }
    }

    /// Reads a range, which lies within the disk.
    pub async fn read(&self, range: GuestRange, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Nbd(source) => source.client.read(range, buffer).await,
            Self::File(source) => {
                let source = source.clone();
                blocking(move || {
                    buffer.resize(to_usize(range.len()), 0);
                    source.disk.read_exact_at(&mut buffer, range.start())?;
                    Ok(buffer)
                })
                .await
            }
        }
    }

    /// Tells the source that a range is not needed any more.
    pub async fn trim(&self, range: GuestRange) -> Result<()> {
        match self {
            Self::Nbd(source) => source.client.trim(range).await,
            Self::File(_) => Err(Error::new(ErrorKind::Unsupported, "a file's ranges are not discarded")),
        }
    }

    /// Says good-bye, where that is the custom.
    pub async fn close(self) {
        match self {
            Self::Nbd(source) => source.client.close().await,
            Self::File(_) => {}
        }
    }
}

impl NbdSource {
    fn export(&self) -> &Export {
        self.client.export()
    }

    fn whole(&self) -> GuestRange {
        self.export().range()
    }

    /// Connects anew to have allocation told as well, or instead.
    async fn ask_for(&mut self, contexts: Vec<String>) -> Result<()> {
        if self.options.contexts == contexts {
            return Ok(());
        }
        let size = self.export().size;
        let options = Options { contexts, ..self.options.clone() };
        // One at a time: some servers take only one client.
        self.client.clone().close().await;
        self.client = Client::connect(&self.uri, &options).await.map_err(|e| match e.kind() {
            ErrorKind::Disconnected => e.with_hint(
                "the server must take another connection when the first has ended: qemu-nbd does with --persistent",
            ),
            _ => e,
        })?;
        self.options = options;
        if self.export().size == size {
            return Ok(());
        }
        let message = format!("{}: the export's size changed between two connections", self.uri);
        Err(Error::new(ErrorKind::Changed, message).with_hint("try again when the disk is no longer being resized"))
    }

    async fn plan_full(&mut self, mut planner: Planner) -> Result<Plan> {
        self.ask_for(vec![ALLOCATION.to_owned()]).await?;
        let whole = self.whole();
        if !self.export().has_context(ALLOCATION) {
            planner.push(whole, Known::Wanted)?;
            return planner.finish();
        }
        let mut walk = self.client.extents(&[ALLOCATION], whole)?;
        let mut done = GuestOffset(0);
        loop {
            let batch = match walk.next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                // A server may know the context and yet have no answer: then all of it is read.
                Err(e) if ServerError::of(&e).is_some() => {
                    tracing::info!(error = e.report(), "the source does not say what is allocated: all of it is read");
                    planner.push(GuestRange::between(done, whole.end()), Known::Wanted)?;
                    break;
                }
                Err(e) => return Err(e),
            };
            for extent in batch.extents.first().into_iter().flatten() {
                let zero = extent.status & STATE_ZERO != 0;
                planner.push(extent.range, if zero { Known::CleanZeros } else { Known::Wanted })?;
            }
            done = batch.range.end();
        }
        planner.finish()
    }

    async fn plan_incremental(&mut self, cluster: u64, parent: &Arc<Disk>, parent_size: u64) -> Result<Increment> {
        let Some(dirty) = self.dirty_context.clone() else {
            return Err(Error::new(ErrorKind::Usage, "an increment of an export for which no bitmap was named"));
        };
        if !self.only_dirty {
            self.ask_for(vec![dirty.clone(), ALLOCATION.to_owned()]).await?;
        }
        if !self.only_dirty && self.export().has_context(ALLOCATION) {
            match self.plan_by_both(&dirty, cluster, parent, parent_size).await {
                Err(e) if ServerError::of(&e).is_some() => {
                    tracing::info!(error = e.report(), "the source does not say what is allocated");
                }
                planned => return planned,
            }
        }
        self.only_dirty = true;
        // Where allocation cannot be told, it must not even be selected: every status would be refused with it.
        self.ask_for(vec![dirty.clone()]).await?;
        let mut planner = Planner::new(self.export().size, cluster, Widening::Parent);
        let mut walk = self.client.extents(&[&dirty], self.whole())?;
        while let Some(batch) = walk.next().await? {
            for extent in batch.extents.first().into_iter().flatten() {
                let dirty = extent.status & STATE_DIRTY != 0;
                if !dirty && extent.range.end().0 > parent_size {
                    return Ok(Increment::OnlyDirty);
                }
                planner.push(extent.range, if dirty { Known::Wanted } else { Known::Clean })?;
            }
        }
        planner.finish().map(Increment::Planned)
    }

    async fn plan_by_both(&self, dirty: &str, cluster: u64, parent: &Arc<Disk>, parent_size: u64) -> Result<Increment> {
        let mut planner = Planner::new(self.export().size, cluster, Widening::Source);
        let mut walk = self.client.extents(&[dirty, ALLOCATION], self.whole())?;
        while let Some(batch) = walk.next().await? {
            let [dirty, allocation] = batch.extents.as_slice() else { continue };
            // Both cover the same stretch; each step ends where either changes.
            let (mut dirty, mut allocation) = (dirty.iter().peekable(), allocation.iter().peekable());
            let mut at = batch.range.start();
            let mut zeros = Vec::new();
            while let (Some(d), Some(a)) = (dirty.peek(), allocation.peek()) {
                let end = d.range.end().min(a.range.end());
                let known = match (d.status & STATE_DIRTY != 0, a.status & STATE_ZERO != 0) {
                    (true, true) => Known::WantedZeros,
                    (true, false) => Known::Wanted,
                    (false, true) => Known::CleanZeros,
                    (false, false) => Known::Clean,
                };
                let range = GuestRange::between(at, end);
                if known == Known::CleanZeros {
                    zeros.push(range);
                }
                push_by_size(&mut planner, range, parent_size, known)?;
                at = end;
                dirty.next_if(|d| d.range.end() <= at);
                allocation.next_if(|a| a.range.end() <= at);
            }
            let parent = parent.clone();
            match blocking(move || first_difference(&parent, &zeros, cluster)).await {
                Ok(None) => {}
                Ok(Some(at)) => return Ok(Increment::Contradiction(at)),
                Err(e) => return Ok(Increment::Unreadable(e)),
            }
        }
        planner.finish().map(Increment::Planned)
    }
}

/// Where the parent has something else than zeros in one of these ranges, which lie in order.
///
/// Of each, its whole clusters are looked at. Of those, a sound parent has hardly any that are stored, so little is read; parts of
/// clusters are zero in many that are.
fn first_difference(parent: &Disk, zeros: &[GuestRange], cluster: u64) -> Result<Option<GuestOffset>> {
    let mut bytes = vec![0; to_usize(cluster)];
    let mut data = parent.next_data(GuestOffset(0))?;
    for range in zeros {
        let Some(mut at) = range.start().0.checked_next_multiple_of(cluster) else { break };
        let end = range.end().0 / cluster * cluster;
        while at < end {
            if data.is_some_and(|data| data.0 < at) {
                data = parent.next_data(GuestOffset(at))?;
            }
            let Some(next) = data else { return Ok(None) };
            at = at.max(next.0 / cluster * cluster);
            if at >= end {
                break;
            }
            let read = parent.read_at(&mut bytes, GuestOffset(at))?;
            if bytes.get(..read).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0)) {
                return Ok(Some(GuestOffset(at)));
            }
            at = at.saturating_add(cluster);
        }
    }
    Ok(None)
}

impl FileSource {
    fn plan_full(&self, mut planner: Planner) -> Result<Plan> {
        let size = GuestOffset(self.disk.size());
        let mut at = GuestOffset(0);
        while let Some((start, end)) = self.disk.next_data(at)? {
            planner.push(GuestRange::between(at, start), Known::CleanZeros)?;
            planner.push(GuestRange::between(start, end), Known::Wanted)?;
            at = end;
        }
        planner.push(GuestRange::between(at, size), Known::CleanZeros)?;
        planner.finish()
    }

    fn plan_incremental(&self, cluster: u64, parent_size: u64) -> Result<Plan> {
        let mut planner = Planner::new(self.disk.size(), cluster, Widening::Source);
        let mut at = GuestOffset(0);
        for dirty in self.dirty.iter().flatten() {
            push_by_size(&mut planner, GuestRange::between(at, dirty.start()), parent_size, Known::Clean)?;
            push_by_size(&mut planner, *dirty, parent_size, Known::Wanted)?;
            at = dirty.end();
        }
        let rest = GuestRange::between(at, GuestOffset(self.disk.size()));
        push_by_size(&mut planner, rest, parent_size, Known::Clean)?;
        planner.finish()
    }
}

/// What the source says, but for what the parent does not have: a bitmap may not count what a disk grew by.
fn push_by_size(planner: &mut Planner, range: GuestRange, parent_size: u64, known: Known) -> Result<()> {
    let old = range.intersect(GuestRange::between(GuestOffset(0), GuestOffset(parent_size)));
    if !old.is_empty() {
        planner.push(old, known)?;
    }
    let new = GuestRange::between(range.start().max(GuestOffset(parent_size)), range.end());
    if new.is_empty() {
        return Ok(());
    }
    planner.push(
        new,
        match known {
            Known::Clean | Known::Wanted => Known::Wanted,
            Known::CleanZeros | Known::WantedZeros => Known::WantedZeros,
        },
    )
}

/// Runs what waits for files on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::new(ErrorKind::Limit, "a worker thread ended early").with_source(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskSpec> {
        text.parse()
    }

    #[test]
    fn a_disk_is_an_export_with_a_bitmap_or_a_file_with_a_list() {
        let disk = parse("drive-scsi0=nbd+unix:///a%20b?socket=/run/q.sock,bitmap=b0,since=cp1").unwrap();
        assert_eq!((disk.name.as_str(), disk.since.as_deref()), ("drive-scsi0", Some("cp1")));
        assert!(matches!(disk.source, SourceSpec::Nbd { bitmap: Some(b), .. } if b == "b0"));
        let disk = parse("root=/dev/vg/snap,dirty=/dev/fd/3").unwrap();
        let file = SourceSpec::File { path: "/dev/vg/snap".into(), dirty: Some("/dev/fd/3".into()) };
        assert_eq!((disk.source, disk.since), (file, None));
        assert!(matches!(parse("a=./nbd:x").unwrap().source, SourceSpec::File { .. }));
    }

    #[test]
    fn words_that_make_no_sense_are_refused() {
        for bad in [
            "",
            "a",
            "=x",
            "a=",
            "a=/x,bitmap=b",
            "a=nbd://h/x,dirty=/l",
            "a=nbd://h/x,bitmap=",
            "a=nbd://h/x,bitmap=a,bitmap=b",
            "a=/x,foo=1",
            "a=nbd://h/x,since=c",
            "a=/x,since=c",
            "a=nbd://h:x/",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
