//! One pass through an archive, header by header.

use super::notes::{Notes, quoted};
use super::window::Window;
use crate::archive::index::{Builder, Limits, Member, Skip};
use crate::archive::node::Kind;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, FileTime, HostOffset, Result};
use crate::format::tar::{
    BLOCK, Extent, Fields, GlobalFields, Header, MapReader, SparseMap, TypeFlag, acl_permissions, old_extents, padded,
};
use crate::storage::Storage;

/// What a pass found.
pub(super) struct Scanned {
    pub(super) builder: Builder,
    /// What is missing or damaged; empty when all is well.
    pub(super) report: String,
    /// Whether the same would be found again: not so after a read that failed.
    pub(super) keep: bool,
}

/// Most bytes of the extended headers of one member. Sparse maps stand in them, and whole extended attributes.
const LONGEST_EXTENSION: u64 = 16 << 20;
/// Most bytes that global headers may leave behind.
const LONGEST_GLOBAL: usize = 1 << 20;
/// Most bytes of a name with its directories.
const LONGEST_PATH: usize = 64 << 10;
/// Most bytes of a symlink's target that the system can show.
const LONGEST_TARGET: usize = 4095;
/// Stands for an owner or group whose number does not fit in 32 bits.
const NOBODY: u32 = 65534;

/// Goes through the whole of an archive. It fails only where the index cannot be held, or the file changed;
/// damage ends the pass and is reported.
pub(super) fn scan(file: &dyn Storage, limits: Limits) -> Result<Scanned> {
    let mtime = file.identity().mtime_ns;
    let time = FileTime::from_seconds(i64::try_from(mtime.div_euclid(1_000_000_000)).unwrap_or(0));
    let mut scan = Scan {
        window: Window::new(file),
        builder: Builder::new(limits, time),
        limits,
        notes: Notes::default(),
        global: GlobalFields::default(),
        pending: Pending::default(),
        at: 0,
    };
    let mut keep = true;
    match scan.run() {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::Io => {
            keep = false;
            scan.notes.archive(scan.at, &format!("what follows cannot be read: {}", error.report()));
        }
        Err(error) => return Err(error),
    }
    Ok(Scanned { builder: scan.builder, report: scan.notes.report(), keep })
}

struct Scan<'a> {
    window: Window<'a>,
    builder: Builder,
    limits: Limits,
    notes: Notes,
    global: GlobalFields,
    pending: Pending,
    /// Where the next header is.
    at: u64,
}

/// What extension headers said of the member that follows them.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<u8>,
    /// Why the member must not be shown.
    bad: Option<String>,
    any: bool,
}

/// What follows a member's header.
struct Stored {
    /// Where its data begins.
    data: u64,
    /// How many bytes it has.
    size: u64,
    /// The map of the old GNU form, which stood between the two.
    old_map: Option<Vec<Extent>>,
}

/// Whether to go on.
enum Step {
    On,
    End,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<()> {
        let mut zeros = 0_u64;
        loop {
            let Some(block) = self.block(self.at)? else {
                self.end_of_file(zeros);
                return Ok(());
            };
            if block.iter().all(|b| *b == 0) {
                zeros = zeros.saturating_add(1);
                self.at = self.at.saturating_add(BLOCK as u64);
                if zeros == 2 {
                    self.end_mark()?;
                }
                continue;
            }
            zeros = 0;
            let Some(header) = Header::parse(&block) else {
                self.notes.archive(self.at, "here a header should stand and does not: nothing from here on is shown");
                return Ok(());
            };
            match self.header(&header)? {
                Step::On => {}
                Step::End => return Ok(()),
            }
        }
    }

    fn block(&mut self, at: u64) -> Result<Option<[u8; BLOCK]>> {
        Ok(self.window.get(at, BLOCK)?.and_then(|block| block.first_chunk().copied()))
    }

    fn end_of_file(&mut self, zeros: u64) {
        let size = self.window.size();
        if self.at < size && zeros < 2 {
            self.notes.archive(size, "the archive ends here in the middle of a header: it was cut short");
        } else if zeros < 2 {
            self.notes
                .archive(size, "the archive ends here without its end mark: it was cut short, members may be missing");
        } else if self.pending.any {
            self.notes.archive(size, "the archive ends after an extended header without its member");
        }
    }

    /// Two blocks of zeros end an archive; another one may follow, after any number of zeros.
    fn end_mark(&mut self) -> Result<()> {
        if self.pending.any {
            self.notes.archive(self.at, "an extended header's member is missing");
        }
        self.global = GlobalFields::default();
        self.pending = Pending::default();
        // Archives may be followed by very much nothing.
        let next = self.window.next_data(self.at)?.unwrap_or(self.window.size());
        let blocks = next.saturating_sub(self.at) / BLOCK as u64;
        self.at = self.at.saturating_add(blocks * BLOCK as u64);
        Ok(())
    }

    fn header(&mut self, header: &Header<'_>) -> Result<Step> {
        let here = self.at;
        let data = here.saturating_add(BLOCK as u64);
        let flag = header.type_flag();
        let extension = matches!(flag, TypeFlag::LongName | TypeFlag::LongLink | TypeFlag::Pax | TypeFlag::GlobalPax);
        let mut pending = if extension { Pending::default() } else { std::mem::take(&mut self.pending) };
        let mut fields = Fields::default();
        if !extension {
            match Fields::parse(&self.global, &pending.pax) {
                Ok(parsed) => fields = parsed,
                Err(error) => pending.bad = Some(error.report()),
            }
        }
        let size = match fields.size.map_or_else(|| header.size(), Ok) {
            Ok(size) => size,
            Err(error) => {
                self.notes.member(here, &header.name(), &format!("{}: nothing from here on is shown", error.report()));
                return Ok(Step::End);
            }
        };
        let size = self.data_size(flag, size, data)?;
        let (data, old_map) = match flag {
            TypeFlag::OldSparse => self.old_map(header, data)?,
            _ => (data, None),
        };
        let end = padded(size).and_then(|padded| data.checked_add(padded));
        // The padding of a last member may be missing without harm.
        let whole = data.checked_add(size).is_some_and(|end| end <= self.window.size());
        let Some(end) = end.filter(|_| whole) else {
            let name = member_name(header, &pending, &fields);
            let missing = data.saturating_add(size).saturating_sub(self.window.size());
            self.notes.archive(
                self.window.size(),
                &format!(
                    "the archive ends here in the middle of {}, of which {missing} bytes are missing: it was cut short",
                    quoted(&name)
                ),
            );
            return Ok(Step::End);
        };
        if extension {
            self.extension(flag, data, size)?;
        } else {
            let name = member_name(header, &pending, &fields);
            match self.member(header, &name, &pending, &mut fields, &Stored { data, size, old_map }) {
                Ok(()) => {}
                Err(Skip::Member(reason)) => self.notes.member(here, &name, &format!("not shown: {reason}")),
                Err(Skip::Everything(error)) => return Err(error),
            }
            for problem in &fields.problems {
                self.notes.member(here, &name, problem);
            }
        }
        self.at = end;
        Ok(Step::On)
    }

    /// How many bytes of data follow a header that declares `size`.
    ///
    /// For what is no file POSIX leaves it open whether the size means anything. Writers differ, so what stands there decides:
    /// where a header follows at once, there is no data.
    fn data_size(&mut self, flag: TypeFlag, size: u64, data: u64) -> Result<u64> {
        let unclear = match flag {
            TypeFlag::HardLink
            | TypeFlag::Symlink
            | TypeFlag::CharDevice
            | TypeFlag::BlockDevice
            | TypeFlag::Directory
            | TypeFlag::Fifo => true,
            TypeFlag::Regular
            | TypeFlag::LongName
            | TypeFlag::LongLink
            | TypeFlag::Pax
            | TypeFlag::GlobalPax
            | TypeFlag::OldSparse
            | TypeFlag::DumpDirectory
            | TypeFlag::Continuation
            | TypeFlag::NoMember => false,
        };
        if !unclear || size == 0 {
            return Ok(size);
        }
        let header_follows = match self.block(data)? {
            Some(block) => block.iter().all(|b| *b == 0) || Header::parse(&block).is_some(),
            None => true,
        };
        Ok(if header_follows { 0 } else { size })
    }

    /// Takes in what an extension header says of what follows.
    fn extension(&mut self, flag: TypeFlag, data: u64, size: u64) -> Result<()> {
        let limit = match flag {
            TypeFlag::LongName | TypeFlag::LongLink => LONGEST_PATH as u64 + 1,
            _ => LONGEST_EXTENSION.saturating_sub(self.pending.pax.len() as u64),
        };
        let text = if size > limit { None } else { self.window.get(data, to_usize(size))? };
        let Some(text) = text.map(<[u8]>::to_vec) else {
            let what = format!("an extended header of {size} bytes, more than are read");
            if flag == TypeFlag::GlobalPax {
                self.notes.archive(self.at, &what);
            } else {
                self.pending.bad = Some(what);
                self.pending.any = true;
            }
            return Ok(());
        };
        let name = || text.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match flag {
            TypeFlag::LongName => self.pending.long_name = Some(name()),
            TypeFlag::LongLink => self.pending.long_link = Some(name()),
            TypeFlag::GlobalPax => {
                let before = self.global.clone();
                let added = self.global.add(&text);
                if let Err(error) = added {
                    self.notes.archive(self.at, &format!("a global header is left out: {}", error.report()));
                    self.global = before;
                } else if self.global.memory() > LONGEST_GLOBAL {
                    self.notes.archive(self.at, "a global header is left out: together they are too long");
                    self.global = before;
                }
                return Ok(());
            }
            _ => self.pending.pax.extend_from_slice(&text),
        }
        self.pending.any = true;
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        name: &[u8],
        pending: &Pending,
        fields: &mut Fields,
        stored: &Stored,
    ) -> Result<(), Skip> {
        if let Some(bad) = &pending.bad {
            return Err(Skip::Member(bad.clone()));
        }
        if name.len() > LONGEST_PATH {
            return Err(Skip::Member(format!("its name has {} bytes, at most {LONGEST_PATH} are read", name.len())));
        }
        let target = |fields: &Fields| {
            let long = fields.link_path.as_ref().or(pending.long_link.as_ref());
            long.cloned().unwrap_or_else(|| header.link_name().to_vec())
        };
        let kind = match header.type_flag() {
            TypeFlag::HardLink => return self.hard_link(header, name, &target(fields), fields, stored),
            TypeFlag::Continuation => {
                return Err(Skip::Member("the file began on an earlier volume, which is another archive".into()));
            }
            TypeFlag::NoMember | TypeFlag::LongName | TypeFlag::LongLink | TypeFlag::Pax | TypeFlag::GlobalPax => {
                return Ok(());
            }
            // Tars before POSIX had no other way to say it.
            TypeFlag::Regular if name.ends_with(b"/") => Kind::Directory,
            TypeFlag::Regular | TypeFlag::OldSparse => Kind::Regular,
            TypeFlag::Directory | TypeFlag::DumpDirectory => Kind::Directory,
            TypeFlag::Symlink => Kind::Symlink,
            TypeFlag::CharDevice => Kind::CharDevice,
            TypeFlag::BlockDevice => Kind::BlockDevice,
            TypeFlag::Fifo => Kind::Fifo,
        };
        let mut member = self.describe(header, kind, fields)?;
        match kind {
            Kind::Regular => self.content(header, fields, &mut member, stored)?,
            Kind::Symlink => {
                let target = target(fields);
                if target.len() > LONGEST_TARGET || target.contains(&0) {
                    return Err(Skip::Member("its target is longer than 4095 bytes or holds a NUL".into()));
                }
                member.target = Some(target);
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = header.device().map_err(about_member)?;
                member.device = (fields.dev_major.unwrap_or(major), fields.dev_minor.unwrap_or(minor));
            }
            Kind::Directory | Kind::Fifo | Kind::Socket => {}
        }
        self.builder.add(name, &member)
    }

    fn hard_link(
        &mut self,
        header: &Header<'_>,
        name: &[u8],
        target: &[u8],
        fields: &mut Fields,
        stored: &Stored,
    ) -> Result<(), Skip> {
        if self.builder.hard_link(name, target)? {
            return Ok(());
        }
        if stored.size == 0 {
            return Err(Skip::Member(format!(
                "it is a hard link to {}, which does not stand before it in the archive",
                quoted(target)
            )));
        }
        // Some writers give each link its data; then it can do without the others.
        let mut member = self.describe(header, Kind::Regular, fields)?;
        self.content(header, fields, &mut member, stored)?;
        self.builder.add(name, &member)
    }

    /// What all kinds of members have.
    fn describe(&mut self, header: &Header<'_>, kind: Kind, fields: &mut Fields) -> Result<Member, Skip> {
        let mut problems = Vec::new();
        let mut owner = |what: &str, field: Option<i64>, header: Result<i64>| -> Result<u32, Skip> {
            let number = field.map_or(header, Ok).map_err(about_member)?;
            Ok(u32::try_from(number).unwrap_or_else(|_| {
                problems.push(format!("its {what} {number} does not fit in 32 bits and is shown as {NOBODY}"));
                NOBODY
            }))
        };
        let uid = owner("owner", fields.uid, header.uid())?;
        let gid = owner("group", fields.gid, header.gid())?;
        fields.problems.append(&mut problems);
        let mtime = match fields.mtime {
            Some(mtime) => mtime,
            None => FileTime::from_seconds(header.mtime().map_err(about_member)?),
        };
        let permissions = match kind {
            // Whatever the archive says, that is what a symlink has.
            Kind::Symlink => 0o777,
            _ => header.permissions().map_err(about_member)?,
        };
        // Some writers store the group's own entry where `stat` has the mask.
        let access = fields.xattrs.iter().find(|(name, _)| name == b"system.posix_acl_access");
        let from_acl = access.and_then(|(_, value)| acl_permissions(value));
        Ok(Member {
            permissions: from_acl.map_or(permissions, |bits| permissions & 0o7000 | bits),
            uid,
            gid,
            atime: fields.atime,
            ctime: fields.ctime,
            xattrs: std::mem::take(&mut fields.xattrs),
            kind,
            ..Member::bare_directory(mtime)
        })
    }

    /// Where a regular file's bytes are.
    fn content(
        &mut self,
        header: &Header<'_>,
        fields: &mut Fields,
        member: &mut Member,
        stored: &Stored,
    ) -> Result<(), Skip> {
        let Stored { data, size, .. } = *stored;
        let (extents, real_size, before) = match (header.type_flag(), fields.sparse_major, fields.sparse_minor) {
            (TypeFlag::OldSparse, ..) => {
                let extents = stored
                    .old_map
                    .clone()
                    .ok_or_else(|| Skip::Member("its sparse map is damaged or has too many runs of data".into()))?;
                (extents, header.real_size().map_err(about_member)?, 0)
            }
            (_, Some(1), Some(0)) => {
                let (extents, blocks) = self.map_before_data(data, size)?;
                (extents, fields.real_size.unwrap_or(size), blocks)
            }
            (_, None | Some(0), _) => match (fields.sparse_map.take(), fields.real_size) {
                (Some(extents), Some(real_size)) => (extents, real_size, 0),
                (None, None) => {
                    member.size = size;
                    member.data = HostOffset(data);
                    return Ok(());
                }
                _ => return Err(Skip::Member("its sparse map is incomplete".into())),
            },
            (_, major, minor) => {
                let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
                return Err(Skip::Member(format!(
                    "its holes are kept in the form {}.{}, which is not known",
                    number(major),
                    number(minor)
                )));
            }
        };
        if extents.len() > self.limits.extents as usize {
            return Err(Skip::Member(format!("its sparse map has {} runs of data, too many", extents.len())));
        }
        let map = SparseMap::new(extents, real_size, size.saturating_sub(before)).map_err(about_member)?;
        member.sparse = Some(map);
        member.size = real_size;
        member.data = HostOffset(data.saturating_add(before));
        Ok(())
    }

    /// The map of an old GNU sparse file, where its data begins behind the blocks of the map, which its size does not count.
    ///
    /// No map where that is damaged or too long. The blocks end with the file, whatever they say.
    fn old_map(&mut self, header: &Header<'_>, data: u64) -> Result<(u64, Option<Vec<Extent>>)> {
        let mut extents = Vec::new();
        let mut too_many = false;
        let mut more = old_extents(Some(header), header.block(), &mut extents);
        let mut at = data;
        loop {
            match more {
                Ok(true) => {}
                Ok(false) => return Ok((at, (!too_many).then_some(extents))),
                Err(_) => return Ok((at, None)),
            }
            let Some(block) = self.block(at)? else { return Ok((at, None)) };
            at = at.saturating_add(BLOCK as u64);
            if extents.len() > self.limits.extents as usize {
                too_many = true;
                extents.clear();
            }
            more = old_extents(None, &block, &mut extents);
        }
    }

    /// The map of PAX form 1.0, and how many bytes of the data it takes.
    fn map_before_data(&mut self, data: u64, size: u64) -> Result<(Vec<Extent>, u64), Skip> {
        let mut reader = MapReader::new(self.limits.extents.into());
        let mut blocks = 0_u64;
        loop {
            let next = blocks.saturating_add(BLOCK as u64);
            let block = if next > size { None } else { self.block(data.saturating_add(blocks))? };
            let Some(block) = block else { return Err(Skip::Member("its sparse map is cut short".into())) };
            blocks = next;
            if reader.take(&block).map_err(about_member)? {
                return Ok((reader.finish(), blocks));
            }
        }
    }
}

/// An error about one member is a reason to leave that one out.
fn about_member(error: Error) -> Skip {
    Skip::Member(error.report())
}

/// The name that counts, of the up to four that a member has.
fn member_name(header: &Header<'_>, pending: &Pending, fields: &Fields) -> Vec<u8> {
    let long = fields.sparse_name.as_ref().or(fields.path.as_ref()).or(pending.long_name.as_ref());
    long.cloned().unwrap_or_else(|| header.name())
}
