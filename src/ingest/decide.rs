//! Full or incremental, disk by disk, with the reason. Pure: the facts are gathered elsewhere.

use serde::Serialize;

use crate::format::ImageFormat;
use crate::format::manifest::Parent;

/// The disk in the latest backup that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParentDisk {
    /// The backup's directory and the file in it.
    #[serde(flatten)]
    pub place: Parent,
    /// The layer's format.
    pub format: ImageFormat,
    /// The disk's virtual size there, in bytes.
    pub size: u64,
    /// How many layers make it up.
    pub depth: usize,
    /// What its source called that point in time, where it was told.
    pub checkpoint: Option<String>,
}

/// What the source can say about changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes<'a> {
    /// Nobody named a bitmap or a list.
    Unnamed,
    /// A bitmap was named, and the server does not have it.
    NotOffered(&'a str),
    /// A bitmap was named, and the server has it.
    Bitmap(&'a str),
    /// A list of dirty ranges was given.
    List,
}

/// What the decision about one disk depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `--full` was given.
    pub forced: bool,
    /// The disk's latest backup, if it has one that is whole; else why there is no parent.
    pub parent: Result<&'a ParentDisk, &'a str>,
    /// The disk's virtual size now, in bytes.
    pub size: u64,
    /// What the source can say about changes.
    pub changes: Changes<'a>,
    /// From which checkpoint on the changes count, where the caller said so.
    pub since: Option<&'a str>,
    /// Whether nothing but what is dirty can be read.
    pub only_dirty: bool,
    /// The most layers that a chain is to have.
    pub max_layers: usize,
}

/// What is made of a disk, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Decision {
    /// All of it.
    Full {
        /// Why.
        reason: String,
    },
    /// What changed since the parent.
    Incremental {
        /// Why that is enough.
        reason: String,
        /// The layer below.
        parent: ParentDisk,
    },
}

impl Decision {
    /// Why it was made.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Full { reason } | Self::Incremental { reason, .. } => reason,
        }
    }

    /// The layer below, if there is to be one.
    #[must_use]
    pub fn parent(&self) -> Option<&ParentDisk> {
        match self {
            Self::Full { .. } => None,
            Self::Incremental { parent, .. } => Some(parent),
        }
    }
}

/// The most layers that a chain has when nobody says otherwise.
///
/// A layer's backing name is `../qemu-2024-11-07T16-51-22Z/…`, and QEMU strings those of a whole chain together, without shortening
/// them, to the name under which it opens the lowest layer (`path_combine` in its block layer): 29 bytes a layer, and Linux takes names
/// of up to 4096. So some 140 layers would open with `qemu-img`; this leaves a kilobyte for the name of the store.
pub const MAX_LAYERS: usize = 100;
/// The most that can be asked for: somewhat below what the readers of this program take.
pub const MOST_MAX_LAYERS: usize = 9_000;

/// Decides about one disk.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Decision {
    match why_full(facts) {
        Ok((parent, reason)) => Decision::Incremental { reason, parent: parent.clone() },
        Err(reason) => Decision::Full { reason },
    }
}

/// The parent and why it can be one, or why the backup must be a full one.
fn why_full<'a>(facts: &Facts<'a>) -> Result<(&'a ParentDisk, String), String> {
    if facts.forced {
        return Err("a full backup was asked for".to_owned());
    }
    let changes = match facts.changes {
        Changes::Unnamed => return Err("no bitmap was named".to_owned()),
        Changes::NotOffered(name) => return Err(format!("the source does not offer the bitmap '{name}'")),
        Changes::Bitmap(name) => format!("bitmap '{name}'"),
        Changes::List => "list of dirty ranges".to_owned(),
    };
    let parent = facts.parent?;
    let backup = &parent.place.backup;
    let counts = match (facts.since, &parent.checkpoint) {
        (None, _) => format!("the {changes} counts from the disk's latest backup, {backup}"),
        (Some(since), Some(checkpoint)) if since == checkpoint => {
            format!("the {changes} counts from checkpoint '{since}', which {backup} is of")
        }
        (Some(since), Some(checkpoint)) => {
            return Err(format!(
                "the {changes} counts from checkpoint '{since}', but the disk's latest backup, {backup}, is of '{checkpoint}'"
            ));
        }
        (Some(since), None) => {
            return Err(format!(
                "the {changes} counts from checkpoint '{since}', but the disk's latest backup, {backup}, records none"
            ));
        }
    };
    if facts.size < parent.size {
        return Err(format!("the disk has shrunk from {} to {} bytes since {backup}", parent.size, facts.size));
    }
    if facts.size > parent.size && facts.only_dirty {
        return Err(format!(
            "the disk has grown from {} to {} bytes since {backup}, and its source gives only what is dirty",
            parent.size, facts.size
        ));
    }
    if parent.depth >= facts.max_layers {
        return Err(format!("the chain has {} layers, and {} is the most it may have", parent.depth, facts.max_layers));
    }
    let grown = if facts.size > parent.size {
        format!("; the disk has grown from {} bytes", parent.size)
    } else {
        String::new()
    };
    Ok((parent, format!("{counts}{grown}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> ParentDisk {
        ParentDisk {
            place: Parent { backup: "qemu-2024-11-07T16-51-22Z".into(), file: "drive-scsi0.qcow2".into() },
            format: ImageFormat::Qcow2,
            size: 1 << 30,
            depth: 3,
            checkpoint: Some("cp1".into()),
        }
    }

    fn facts(parent: &ParentDisk) -> Facts<'_> {
        Facts {
            forced: false,
            parent: Ok(parent),
            size: 1 << 30,
            changes: Changes::Bitmap("b"),
            since: None,
            only_dirty: false,
            max_layers: 4,
        }
    }

    fn full(facts: Facts<'_>) -> String {
        match decide(&facts) {
            Decision::Full { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn with_a_whole_parent_of_the_same_size_and_a_bitmap_it_is_an_increment() {
        let parent = parent();
        for facts in [
            facts(&parent),
            Facts { since: Some("cp1"), ..facts(&parent) },
            Facts { changes: Changes::List, ..facts(&parent) },
            Facts { size: 2 << 30, ..facts(&parent) },
            Facts { only_dirty: true, ..facts(&parent) },
        ] {
            assert_eq!(decide(&facts).parent(), Some(&parent), "{facts:?}");
        }
    }

    #[test]
    fn whatever_makes_an_increment_wrong_makes_it_a_full_backup_and_says_why() {
        let parent = parent();
        let nameless = ParentDisk { checkpoint: None, ..parent.clone() };
        let deep = ParentDisk { depth: 4, ..parent.clone() };
        for (facts, why) in [
            (Facts { forced: true, ..facts(&parent) }, "asked for"),
            (Facts { changes: Changes::Unnamed, ..facts(&parent) }, "no bitmap"),
            (Facts { changes: Changes::NotOffered("b"), ..facts(&parent) }, "does not offer the bitmap 'b'"),
            (Facts { parent: Err("it is the disk's first backup"), ..facts(&parent) }, "first backup"),
            (Facts { since: Some("cp0"), ..facts(&parent) }, "is of 'cp1'"),
            (Facts { since: Some("cp1"), ..facts(&nameless) }, "records none"),
            (Facts { size: 512, ..facts(&parent) }, "shrunk"),
            (Facts { size: 2 << 30, only_dirty: true, ..facts(&parent) }, "grown"),
            (facts(&deep), "has 4 layers, and 4 is the most"),
        ] {
            let reason = full(facts);
            assert!(reason.contains(why), "{reason}");
        }
    }
}
