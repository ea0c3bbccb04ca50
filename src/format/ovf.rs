//! The OVF that oVirt's engine writes for a virtual machine: its disk images and its snapshots.
//!
//! Only what tells one point in time from another is read. Names are compared without their namespace's prefix, because
//! engines differ in the namespace they declare; entities are not expanded, and a document type is refused. An image's `parentRef`
//! is passed over: the engine does not always write the right one there, while the image's own header names its backing file.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::ImageFormat;
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// Most bytes that an OVF may have.
pub const SIZE_LIMIT: usize = 16 << 20;
/// Deepest nesting that is followed; engines write seven levels.
const MAX_DEPTH: usize = 64;

/// What an OVF says about disks and snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ovf {
    /// Every image of every disk.
    pub images: Vec<OvfImage>,
    /// The snapshots, in the document's order.
    pub snapshots: Vec<OvfSnapshot>,
}

/// One image: a disk's state in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfImage {
    /// The image's id (`diskId`).
    pub image: String,
    /// Disk id and image id with a slash between (`fileRef`): where the file lies beneath the disks' directory.
    pub file: String,
    /// The snapshot that the image belongs to (`vm_snapshot_id`).
    pub snapshot: Option<String>,
    /// What people call the disk (`disk-alias`).
    pub alias: Option<String>,
    /// The image's format (`volume-format`: `COW` or `RAW`).
    pub format: Option<ImageFormat>,
}

/// One snapshot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OvfSnapshot {
    /// Its id.
    pub id: String,
    /// What it is: `REGULAR`, `ACTIVE` (the machine's current state), `NEXT_RUN` (a configuration without data), …
    pub kind: String,
    /// What somebody wrote about it.
    pub description: String,
    /// When it was taken; `None` where the text is not a date as the engine writes it.
    pub created: Option<Timestamp>,
}

impl OvfSnapshot {
    /// Whether it is the machine's current state rather than one that was kept.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.kind == "ACTIVE"
    }
}

impl Ovf {
    /// Reads an OVF document.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > SIZE_LIMIT {
            return Err(corrupt(format!("it has {} bytes, more than the {SIZE_LIMIT} allowed", bytes.len())));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| corrupt("it is not UTF-8").with_source(e))?;
        let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut parser = Parser::default();
        loop {
            let event = reader.read_event().map_err(|e| {
                corrupt(format!("it is not well-formed XML, near byte {}", reader.error_position())).with_source(e)
            })?;
            match event {
                Event::Start(element) => parser.open(&element)?,
                Event::Empty(element) => {
                    parser.open(&element)?;
                    parser.close();
                }
                Event::End(_) => parser.close(),
                Event::Text(part) => parser.text(&part.xml10_content()),
                Event::CData(part) => parser.text(&part.xml10_content()),
                Event::GeneralRef(part) => {
                    let name = part.xml10_content();
                    let resolved = part.resolve_char_ref().ok().flatten().map(String::from);
                    let known = quick_xml::escape::resolve_xml_entity(&name).map(str::to_owned);
                    parser.text(&resolved.or(known).unwrap_or_default());
                }
                Event::DocType(_) => return Err(corrupt("it declares a document type, which no engine writes")),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        if parser.path.is_empty() && parser.seen_envelope { Ok(parser.ovf) } else { Err(parser.unfinished()) }
    }
}

/// Which part of the document an open element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Other,
    Snapshot,
    SnapshotType,
    SnapshotDescription,
    SnapshotDate,
}

#[derive(Debug, Default)]
struct Parser {
    ovf: Ovf,
    path: Vec<Place>,
    seen_envelope: bool,
    snapshot: OvfSnapshot,
    date: String,
}

impl Parser {
    fn open(&mut self, element: &BytesStart<'_>) -> Result<()> {
        if self.path.len() == MAX_DEPTH {
            return Err(corrupt(format!("its elements are nested more than {MAX_DEPTH} deep")));
        }
        let name = element.local_name();
        let name = name.as_ref();
        if self.path.is_empty() {
            if name != "Envelope" {
                return Err(corrupt("it is XML, but no OVF: its root is not an Envelope"));
            }
            self.seen_envelope = true;
        }
        let place = match (self.path.last(), name) {
            (Some(Place::Snapshot), "Type") => Place::SnapshotType,
            (Some(Place::Snapshot), "Description") => Place::SnapshotDescription,
            (Some(Place::Snapshot), "CreationDate") => Place::SnapshotDate,
            (Some(Place::Other), "Snapshot") => match attributes(element, ["id"])? {
                [Some(id)] => {
                    self.snapshot = OvfSnapshot { id, ..OvfSnapshot::default() };
                    self.date.clear();
                    Place::Snapshot
                }
                [None] => Place::Other,
            },
            (Some(Place::Other), "Disk") => {
                self.disk(element)?;
                Place::Other
            }
            _ => Place::Other,
        };
        self.path.push(place);
        Ok(())
    }

    fn disk(&mut self, element: &BytesStart<'_>) -> Result<()> {
        let names = ["diskId", "fileRef", "vm_snapshot_id", "disk-alias", "volume-format"];
        let [image, file, snapshot, alias, format] = attributes(element, names)?;
        // A disk that is a LUN has no image of its own.
        let (Some(image), Some(file)) = (image, file) else { return Ok(()) };
        let format = match format.as_deref() {
            Some("COW") => Some(ImageFormat::Qcow2),
            Some("RAW") => Some(ImageFormat::Raw),
            Some(_) | None => None,
        };
        let (snapshot, alias) = (snapshot.filter(|id| !id.is_empty()), alias.filter(|alias| !alias.is_empty()));
        self.ovf.images.push(OvfImage { image, file, snapshot, alias, format });
        Ok(())
    }

    fn text(&mut self, text: &str) {
        match self.path.last() {
            Some(Place::SnapshotType) => self.snapshot.kind.push_str(text),
            Some(Place::SnapshotDescription) => self.snapshot.description.push_str(text),
            Some(Place::SnapshotDate) => self.date.push_str(text),
            Some(Place::Snapshot | Place::Other) | None => {}
        }
    }

    fn close(&mut self) {
        if self.path.pop() == Some(Place::Snapshot) {
            let mut snapshot = std::mem::take(&mut self.snapshot);
            snapshot.kind = snapshot.kind.trim().to_owned();
            snapshot.description = snapshot.description.trim().to_owned();
            snapshot.created = parse_date(self.date.trim());
            self.ovf.snapshots.push(snapshot);
        }
    }

    fn unfinished(&self) -> Error {
        match self.path.len() {
            0 => corrupt("it is empty"),
            open => corrupt(format!("it ends with {open} elements open: it was cut short")),
        }
    }
}

/// The values of the attributes of these names, without regard to their prefixes. The first of two wins.
fn attributes<const N: usize>(element: &BytesStart<'_>, names: [&str; N]) -> Result<[Option<String>; N]> {
    let mut values = [const { None }; N];
    // Without the check for duplicates, whose time grows with the square of their number.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|e| corrupt("an element's attributes are damaged").with_source(e))?;
        let local = attribute.key.local_name();
        let at = names.iter().position(|name| *name == local.as_ref());
        let Some(slot) = at.and_then(|at| values.get_mut(at)).filter(|slot| slot.is_none()) else { continue };
        let value = attribute
            .normalized_value(quick_xml::XmlVersion::default())
            .map_err(|e| corrupt("an attribute's value is damaged").with_source(e))?;
        *slot = Some(value.into_owned());
    }
    Ok(values)
}

/// `2024/11/07 16:51:22` in UTC, as engines write it; old ones wrote dots for the slashes.
fn parse_date(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    if date.len() != 10 || time.len() != 8 {
        return None;
    }
    Timestamp::parse_file_name(&format!("{}T{}Z", date.replace(['/', '.'], "-"), time.replace(':', "-")))
}

fn corrupt(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the OVF cannot be understood: {}", why.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References><File ovf:href="d1/i1" ovf:id="i1"/></References>
  <Section xsi:type="ovf:DiskSection_Type">
    <Disk ovf:diskId="i1" ovf:size="10" ovf:vm_snapshot_id="s1" ovf:parentRef="" ovf:fileRef="d1/i1"
      ovf:volume-format="RAW" ovf:disk-alias="web &amp; mail"/>
    <Disk ovf:diskId="i2" ovf:vm_snapshot_id="s2" ovf:parentRef="d9/wrong" ovf:fileRef="d1/i2" ovf:volume-format="COW"></Disk>
    <Disk ovf:diskId="lun" ovf:lun_id="36001405"/>
  </Section>
  <Content ovf:id="out">
    <Description>not a snapshot's</Description><CreationDate>2013/05/23 19:30:39</CreationDate>
    <Section xsi:type="ovf:SnapshotsSection_Type">
      <Snapshot ovf:id="s1"><Type>REGULAR</Type><Description>before &lt;upgrade&#33;&gt;</Description>
        <CreationDate>2024/11/07 16:51:22</CreationDate>
        <VmConfiguration><![CDATA[<Snapshot id="x"/>]]></VmConfiguration></Snapshot>
      <Snapshot ovf:id="s2"><Type>ACTIVE</Type><Description>Active VM</Description>
        <CreationDate>2024.11.08 00:00:00</CreationDate></Snapshot>
    </Section>
  </Content>
</ovf:Envelope>"#;

    #[test]
    fn images_and_snapshots_are_read_as_the_engine_writes_them() {
        let ovf = Ovf::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(ovf.images.len(), 2, "a LUN has no image");
        assert_eq!(ovf.images[0].file, "d1/i1");
        assert_eq!(ovf.images[0].alias.as_deref(), Some("web & mail"));
        assert_eq!(ovf.images[0].format, Some(ImageFormat::Raw));
        assert_eq!(ovf.images[1].snapshot.as_deref(), Some("s2"));
        assert_eq!(ovf.images[1].format, Some(ImageFormat::Qcow2));
        assert_eq!(ovf.snapshots.len(), 2);
        assert_eq!(ovf.snapshots[0].description, "before <upgrade!>");
        assert_eq!(ovf.snapshots[0].created.unwrap().to_string(), "2024-11-07T16:51:22Z");
        assert_eq!(ovf.snapshots[1].created.unwrap().to_string(), "2024-11-08T00:00:00Z");
        assert!(ovf.snapshots[1].is_active() && !ovf.snapshots[0].is_active());
    }

    #[test]
    fn a_date_that_no_engine_writes_is_no_date() {
        for no in
            ["", "2024/11/07", "07/11/2024 16:51:22", "2024/13/07 16:51:22", "2024/11/07 24:00:00", "now or never"]
        {
            assert_eq!(parse_date(no), None, "{no}");
        }
    }

    fn why(text: &str) -> String {
        let e = Ovf::parse(text.as_bytes()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        e.report()
    }

    #[test]
    fn what_is_no_whole_ovf_says_why() {
        assert!(why("").contains("empty"));
        assert!(why("<html/>").contains("no OVF"));
        let (half, _) = SAMPLE.split_once("<Content").unwrap();
        assert!(why(half).contains("cut short"));
        assert!(why(&SAMPLE[..half.len() + 3]).contains("well-formed"));
        assert!(why("<Envelope><a></b></Envelope>").contains("well-formed"));
        assert!(Ovf::parse(b"<Envelope>\xff</Envelope>").is_err());
    }

    #[test]
    fn entities_cannot_be_declared_and_nesting_is_bounded() {
        assert!(why("<!DOCTYPE x [<!ENTITY a \"aaaa\">]><Envelope>&a;</Envelope>").contains("document type"));
        assert!(why(&("<Envelope>".to_owned() + &"<a>".repeat(100_000))).contains("deep"));
    }

    #[test]
    fn a_hundred_thousand_attributes_are_read_in_a_moment() {
        let many: String = (0..100_000).map(|i| format!(" a{i}=\"\"")).collect();
        let start = std::time::Instant::now();
        Ovf::parse(format!("<Envelope><Disk{many}/></Envelope>").as_bytes()).unwrap();
        assert!(start.elapsed() < std::time::Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn no_mutation_makes_the_parser_panic(
            changes in proptest::collection::vec((0..SAMPLE.len(), any::<u8>()), 1..8), cut in 0..SAMPLE.len(),
        ) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = Ovf::parse(&bytes);
            bytes.truncate(cut);
            prop_assert!(Ovf::parse(&bytes).is_err());
        }
    }
}
