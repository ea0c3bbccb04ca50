//! What a test needs of the machine, and how it says so where that is missing.

use std::io::Write;

/// Whether `there` holds. Where it does not, the test is to end: it has then said aloud that it needs `what`; in CI, where every
/// test has to run, it fails instead.
pub(crate) fn needs(there: bool, what: &str) -> bool {
    if there {
        return true;
    }
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("CI").is_none(), "{name} needs {what}");
    let line = format!("SKIPPED {name}: needs {what}\n");
    // Test runners keep to themselves what a test that ends well prints, so `make test` gives a file to collect these lines.
    if let Some(list) = std::env::var_os("ANNALS_SKIPPED")
        && let Ok(mut list) = std::fs::OpenOptions::new().append(true).create(true).open(list)
    {
        let _ = list.write_all(line.as_bytes());
    }
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}
