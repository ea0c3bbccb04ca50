//! Points in time from images alone: where no directory and no OVF says what belongs together, the images' headers tell
//! which one builds on which, and their times tell when.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::model::{Line, Moment, Problem};
use crate::base::{ErrorKind, Timestamp};
use crate::disk;
use crate::format::ImageFormat;
use crate::storage::{Gate, RelPath};

/// Most images that are looked at in one directory.
const MOST_IMAGES: usize = 10_000;

/// Leaves out what is more than a directory is searched for, and says so.
pub(super) fn cut(images: &mut Vec<(RelPath, ImageFormat)>, problems: &mut Vec<Problem>) {
    if let Some((first, _)) = images.get(MOST_IMAGES) {
        let text = format!("only the first {MOST_IMAGES} images of its directory are looked at");
        problems.push(Problem::new(first.as_str(), ErrorKind::Limit, text));
        images.truncate(MOST_IMAGES);
    }
}

/// Images as their headers tie them together.
#[derive(Debug, Default)]
pub(super) struct Links {
    images: BTreeMap<RelPath, Image>,
}

#[derive(Debug)]
struct Image {
    format: ImageFormat,
    below: Option<RelPath>,
}

/// One chain of images, oldest first, as far down as it can be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// The images with their formats; never empty.
    pub(super) images: Vec<(RelPath, ImageFormat)>,
    /// Whether an image of it belongs to another chain too.
    pub(super) shared: bool,
}

impl Links {
    /// Reads the headers of `images`, whose formats are assumed, and of everything below them.
    ///
    /// What an image above declares about the one below it counts more than the assumption. An image that cannot be
    /// read ends its chain; whoever opens that chain as a disk is told why.
    pub(super) fn read(gate: &Gate, images: impl IntoIterator<Item = (RelPath, ImageFormat)>) -> Self {
        let assumed: BTreeMap<RelPath, ImageFormat> = images.into_iter().collect();
        let paths: Vec<RelPath> = assumed.keys().cloned().collect();
        disk::warm(gate, &paths);
        let follow = |path: &RelPath, format| disk::backing(gate, path, format).unwrap_or_default();
        let mut below: HashMap<RelPath, Option<(RelPath, ImageFormat)>> =
            assumed.iter().map(|(path, format)| (path.clone(), follow(path, *format))).collect();
        let named: HashSet<RelPath> = below.values().flatten().map(|(path, _)| path.clone()).collect();

        // From the heads down, so that only declarations of images that are read as qcow2 count.
        let mut links = Self::default();
        let heads = assumed.iter().filter(|(path, _)| !named.contains(path));
        let mut next: Vec<(RelPath, ImageFormat)> = heads.map(|(path, format)| (path.clone(), *format)).collect();
        let mut rest = assumed.iter();
        loop {
            let Some((path, format)) = next.pop() else {
                // What no head leads to lies in a cycle, or is only named by an image that turned out to be raw.
                match rest.find(|(path, _)| !links.images.contains_key(path)) {
                    Some((path, format)) => next.push((path.clone(), *format)),
                    None => return links,
                }
                continue;
            };
            if links.images.contains_key(&path) {
                continue;
            }
            let under = match format {
                ImageFormat::Raw => None,
                ImageFormat::Qcow2 if assumed.get(&path) == Some(&format) => below.remove(&path).flatten(),
                ImageFormat::Qcow2 => follow(&path, format),
            };
            links.images.insert(path, Image { format, below: under.as_ref().map(|(path, _)| path.clone()) });
            next.extend(under);
        }
    }

    /// The format under which `path` is read.
    pub(super) fn format_of(&self, path: &RelPath) -> Option<ImageFormat> {
        self.images.get(path).map(|image| image.format)
    }

    /// Whether `path` is an image or stands below one.
    pub(super) fn contains(&self, path: &RelPath) -> bool {
        self.images.contains_key(path)
    }

    /// A chain for each image that no other builds on; and one for each image of a cycle, which is reported.
    pub(super) fn chains(&self, problems: &mut Vec<Problem>) -> Vec<Chain> {
        let named: HashSet<&RelPath> = self.images.values().filter_map(|image| image.below.as_ref()).collect();
        let mut uses: HashMap<&RelPath, usize> = HashMap::new();
        let mut chains = Vec::new();
        for head in self.images.keys().filter(|path| !named.contains(path)) {
            let chain = self.walk(head);
            chain.iter().for_each(|path| *uses.entry(path).or_default() += 1);
            chains.push(chain);
        }
        let circular: Vec<&RelPath> = self.images.keys().filter(|path| !uses.contains_key(path)).collect();
        if let Some(first) = circular.first() {
            let names: Vec<&str> = circular.iter().map(|path| path.as_str()).collect();
            let text = format!("these images back each other in a cycle: {}", names.join(", "));
            problems.push(Problem::new(first.as_str(), ErrorKind::Corrupt, text));
        }
        chains.extend(circular.into_iter().map(|path| vec![path]));
        let shared = |chain: &[&RelPath]| chain.iter().any(|path| uses.get(path).is_some_and(|uses| *uses > 1));
        let image = |path: &&RelPath| self.images.get(*path).map(|image| ((*path).clone(), image.format));
        chains
            .iter()
            .map(|chain| Chain { images: chain.iter().rev().filter_map(image).collect(), shared: shared(chain) })
            .collect()
    }

    /// The images from `head` down, each once.
    fn walk<'a>(&'a self, head: &'a RelPath) -> Vec<&'a RelPath> {
        let mut chain = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some(head);
        while let Some((path, image)) = next.and_then(|path| self.images.get_key_value(path)) {
            if !seen.insert(path) {
                break;
            }
            chain.push(path);
            next = image.below.as_ref();
        }
        chain
    }
}

/// The chain as a disk of that name through time. A copy may have turned the times around; an image is never older than
/// what it builds on.
pub(super) fn line(name: &str, chain: Chain, time_of: impl Fn(&RelPath) -> Timestamp) -> Line {
    let mut last: Option<Moment> = None;
    let image = |(path, format): (RelPath, ImageFormat)| {
        let own = time_of(&path);
        let moment = match last {
            Some((time, number)) if own <= time => (time, number + 1),
            Some(_) | None => (own, 0),
        };
        last = Some(moment);
        (moment, path, format)
    };
    Line { name: name.to_owned(), images: chain.images.into_iter().map(image).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::model::Contents;
    use super::*;

    fn links(pairs: &[(&str, Option<&str>)]) -> Links {
        let path = |name: &str| RelPath::new(name).unwrap();
        let image = |(name, below): &(&str, Option<&str>)| {
            (path(name), Image { format: ImageFormat::Qcow2, below: below.map(path) })
        };
        Links { images: pairs.iter().map(image).collect() }
    }

    fn names(chains: &[Chain]) -> Vec<Vec<&str>> {
        chains.iter().map(|chain| chain.images.iter().map(|(path, _)| path.as_str()).collect()).collect()
    }

    #[test]
    fn chains_end_at_images_that_nothing_builds_on_and_branches_share_their_base() {
        let links = links(&[("a", None), ("b", Some("a")), ("c", Some("a")), ("d", None)]);
        let mut problems = Vec::new();
        let chains = links.chains(&mut problems);
        assert_eq!(names(&chains), [vec!["a", "b"], vec!["a", "c"], vec!["d"]]);
        assert_eq!(chains.iter().map(|c| c.shared).collect::<Vec<_>>(), [true, true, false]);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_cycle_is_reported_and_leaves_other_chains_alone() {
        let links =
            links(&[("a", Some("b")), ("b", Some("a")), ("self", Some("self")), ("z", None), ("into", Some("a"))]);
        let mut problems = Vec::new();
        assert_eq!(names(&links.chains(&mut problems)), [vec!["b", "a", "into"], vec!["z"], vec!["self"]]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].message.contains("self"), "{problems:?}");
    }

    fn line_of(name: &str, times: &[&str]) -> Line {
        let path = |name: &&str| (RelPath::new(name).unwrap(), ImageFormat::Qcow2);
        let chain = Chain { images: times.iter().map(path).collect(), shared: false };
        line(name, chain, |path| Timestamp::from_epoch(path.as_str().parse().unwrap()).unwrap())
    }

    #[test]
    fn an_image_is_never_older_than_what_it_builds_on() {
        let line = line_of("vda", &["20", "10", "20", "30"]);
        let moments: Vec<_> = line.images.iter().map(|((time, number), ..)| (time.epoch(), *number)).collect();
        assert_eq!(moments, [(20, 0), (20, 1), (20, 2), (30, 0)]);
    }

    #[test]
    fn every_moment_has_each_disk_as_it_was_then() {
        let lines = vec![line_of("vda", &["1", "3"]), line_of("vdb", &["2"])];
        let mut contents = Contents { lines, ..Contents::default() };
        contents.add_levels_of_lines();
        let disks = |level| contents.disks(level).into_iter().map(|d| d.path.to_string()).collect::<Vec<_>>();
        let levels: Vec<_> = contents.levels.iter().map(|level| (level.time.epoch(), disks(level))).collect();
        let paths = |paths: &[&str]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(levels, [(1, paths(&["1"])), (2, paths(&["1", "2"])), (3, paths(&["3", "2"]))]);
    }
}
