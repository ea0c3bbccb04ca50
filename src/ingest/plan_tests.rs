use proptest::prelude::*;

use super::*;

const CLUSTER: u64 = 8;

fn known() -> impl Strategy<Value = Known> {
    prop_oneof![Just(Known::Wanted), Just(Known::WantedZeros), Just(Known::Clean), Just(Known::CleanZeros)]
}

/// Extents that cover a disk: what each byte is known as, and the plan made from the extents.
fn disk() -> impl Strategy<Value = Vec<(u64, Known)>> {
    proptest::collection::vec((1..40_u64, known()), 0..24)
}

fn plan(extents: &[(u64, Known)], widening: Widening, most: usize) -> Result<(Vec<Known>, Plan)> {
    let mut bytes = Vec::new();
    extents.iter().for_each(|(len, known)| bytes.extend(std::iter::repeat_n(*known, *len as usize)));
    let mut planner = Planner::new(bytes.len() as u64, CLUSTER, widening).with_most_steps(most);
    let mut at = 0;
    for (len, known) in extents {
        planner.push(range(at, at + len), *known)?;
        at += len;
    }
    Ok((bytes, planner.finish()?))
}

fn range(start: u64, end: u64) -> GuestRange {
    GuestRange::between(GuestOffset(start), GuestOffset(end))
}

fn action_of(plan: &Plan, byte: u64) -> Option<Action> {
    let mut found = plan.steps.iter().filter(|s| s.range.start().0 <= byte && byte < s.range.end().0);
    let action = found.next().map(|s| s.action);
    assert!(found.next().is_none(), "two steps for byte {byte}");
    action
}

proptest! {
    #[test]
    fn a_cluster_with_a_wanted_byte_is_read_whole_and_zeros_are_believed_only_where_all_of_it_is_zero(extents in disk()) {
        let (bytes, plan) = plan(&extents, Widening::Source, MOST_STEPS).unwrap();
        for (n, cluster) in bytes.chunks(CLUSTER as usize).enumerate() {
            let has = |known| cluster.contains(&known);
            let expected = if has(Known::Wanted) || (has(Known::WantedZeros) && has(Known::Clean)) {
                Some(Action::Read)
            } else if has(Known::WantedZeros) {
                Some(Action::Zero)
            } else {
                None
            };
            for byte in 0..cluster.len() as u64 {
                prop_assert_eq!(action_of(&plan, n as u64 * CLUSTER + byte), expected, "cluster {}", n);
            }
        }
        prop_assert!(plan.steps.windows(2).all(|w| w[0].range.end() < w[1].range.start() || w[0].action != w[1].action));
    }

    #[test]
    fn a_source_that_gives_only_what_is_dirty_is_never_asked_for_a_clean_byte(extents in disk()) {
        let (bytes, plan) = plan(&extents, Widening::Parent, MOST_STEPS).unwrap();
        for (n, known) in bytes.iter().enumerate() {
            let dirty = matches!(known, Known::Wanted | Known::WantedZeros);
            prop_assert_eq!(action_of(&plan, n as u64), dirty.then_some(Action::Read));
        }
    }

    #[test]
    fn batches_read_exactly_what_the_plan_says_in_whole_clusters_and_in_order(
        extents in disk(), parent in any::<bool>(), longest in 1..5_u64,
    ) {
        let widening = if parent { Widening::Parent } else { Widening::Source };
        let (bytes, plan) = plan(&extents, widening, MOST_STEPS).unwrap();
        let size = bytes.len() as u64;
        let mut done = vec![None; bytes.len()];
        let mut next = 0;
        for batch in plan.batches(CLUSTER, longest * CLUSTER, size) {
            let (whole, reads) = match &batch {
                Batch::Zeros(range) => (*range, Vec::new()),
                Batch::Read { range, reads } => (*range, reads.clone()),
            };
            prop_assert!(whole.start().0 >= next && !whole.is_empty());
            prop_assert!(whole.start().0 % CLUSTER == 0 && (whole.end().0 % CLUSTER == 0 || whole.end().0 == size));
            next = whole.end().0;
            if let Batch::Zeros(range) = batch {
                done[range.start().0 as usize..range.end().0 as usize].fill(Some(Action::Zero));
                continue;
            }
            prop_assert!(whole.len() <= longest * CLUSTER);
            for read in &reads {
                prop_assert!(read.start() >= whole.start() && read.end() <= whole.end() && !read.is_empty());
                done[read.start().0 as usize..read.end().0 as usize].fill(Some(Action::Read));
            }
            // No cluster is in a batch for nothing: it would be copied from the parent.
            for cluster in (whole.start().0..whole.end().0).step_by(CLUSTER as usize) {
                prop_assert!(reads.iter().any(|r| !r.intersect(range(cluster, cluster + CLUSTER)).is_empty()));
            }
        }
        for (n, action) in done.iter().enumerate() {
            prop_assert_eq!(*action, action_of(&plan, n as u64));
        }
    }

    #[test]
    fn a_plan_of_too_many_pieces_reads_more_rather_than_less(extents in disk(), most in 1..4_usize) {
        let (bytes, plan) = plan(&extents, Widening::Source, most).unwrap();
        prop_assert!(plan.steps.len() <= most);
        for (n, known) in bytes.iter().enumerate() {
            match known {
                Known::Wanted => prop_assert_eq!(action_of(&plan, n as u64), Some(Action::Read)),
                Known::WantedZeros => prop_assert!(action_of(&plan, n as u64).is_some()),
                Known::Clean | Known::CleanZeros => {}
            }
        }
    }
}

#[test]
fn a_plan_of_too_many_pieces_is_an_error_where_clean_bytes_cannot_be_read() {
    let extents: Vec<_> = (0..10).map(|n| (5, if n % 2 == 0 { Known::Wanted } else { Known::Clean })).collect();
    let e = plan(&extents, Widening::Parent, 3).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Limit);
}

#[test]
fn a_source_that_leaves_a_gap_or_says_too_much_is_not_believed() {
    let mut planner = Planner::new(100, CLUSTER, Widening::Source);
    assert!(planner.push(range(8, 16), Known::Wanted).is_err(), "a gap");
    planner.push(range(0, 50), Known::Clean).unwrap();
    assert!(planner.push(range(40, 60), Known::Clean).is_err(), "twice");
    assert!(planner.push(range(50, 101), Known::Clean).is_err(), "past the end");
    assert!(planner.finish().is_err(), "half the disk");
}
