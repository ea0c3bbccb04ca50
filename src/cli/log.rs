//! Logging to standard error.

use tracing::level_filters::LevelFilter;

/// Starts logging: warnings, and with each `-v` a level more.
pub(super) fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // A second start, as tests in one process would do, leaves the first in place.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(super::output::colour_wanted(&std::io::stderr()))
        .without_time()
        .with_target(false)
        .try_init();
}
