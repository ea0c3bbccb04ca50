//! Random chains, made by QEMU, read through the library and held against a plain vector of bytes and against QEMU.
//!
//! `ANNALS_MODEL_CASES` says how many chains (24), `ANNALS_MODEL_SEED` which is the first (1); what fails names its seed and
//! prints the smallest plan that still fails. Such a plan becomes a test with a name in `named.rs`.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod named;

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::chains::{Chain, Plan, TOOLS};
use support::tools::have;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// What is wrong with a plan's chain, if anything is.
fn failure(plan: &Plan, seed: u64) -> Option<String> {
    let guest = tempfile::tempdir().unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| check::chain(&Chain::make(plan, guest.path()), seed)));
    let panicked = outcome.err()?;
    let text = panicked.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panicked.downcast_ref::<&str>().map(|&s| s.to_owned())).unwrap_or_default())
}

/// Cuts a failing plan down as long as what is left still fails.
fn shrink(mut plan: Plan, mut why: String, seed: u64) -> (Plan, String) {
    const TRIES: usize = 300;
    let mut tries = 0;
    'smaller: loop {
        for candidate in plan.smaller() {
            tries += 1;
            if tries > TRIES {
                return (plan, why);
            }
            if let Some(still) = failure(&candidate, seed) {
                (plan, why) = (candidate, still);
                continue 'smaller;
            }
        }
        return (plan, why);
    }
}

#[test]
fn random_chains_read_as_the_bytes_that_were_written_to_them() {
    if !have(TOOLS) {
        return;
    }
    let first = number("ANNALS_MODEL_SEED", 1);
    let cases = number("ANNALS_MODEL_CASES", 24);
    println!("seeds {first} to {}", first + cases - 1);
    for seed in first..first + cases {
        let plan = Plan::random(seed);
        if let Some(why) = failure(&plan, seed) {
            let (plan, why) = shrink(plan, why, seed);
            panic!("seed {seed}: {why}\nthe smallest plan that fails: {plan:#?}");
        }
    }
}
