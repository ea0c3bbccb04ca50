//! Logging: to standard error, and from a process in the background to a file or the system's log.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::base::{Error, Result, Timestamp};

/// Where log lines go.
#[derive(Debug)]
pub(super) enum Target {
    /// Standard error.
    Stderr,
    /// The end of a file, each line after its time.
    File(std::fs::File),
    /// The socket of syslogd or journald. One datagram is one message (RFC 3164, as both take it locally: without a time,
    /// which they add).
    Syslog(UnixDatagram),
    /// There is nowhere to log to.
    Nowhere,
}

const SYSLOG: &str = "/dev/log";
/// The variable that sets the filter in every detail, in tracing-subscriber's syntax.
const VARIABLE: &str = "ANNALS_LOG";

impl Target {
    /// The file `path`, made if it is not there.
    pub(super) fn file(path: &Path) -> Result<Self> {
        // Every line goes to the end as it is then, so that whoever rotates the file by cutting it short may.
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.map(Self::File).map_err(|e| Error::io(format!("cannot open the log file '{}'", path.display()), e))
    }

    /// The system's log.
    pub(super) fn syslog() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG)?;
        // A log that is stuck must not make the mount hang.
        socket.set_nonblocking(true)?;
        Ok(Self::Syslog(socket))
    }

    fn write(&mut self, level: Level, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(line),
            Self::File(file) => file.write_all(&[now().to_string().as_bytes(), b" ", line].concat()),
            Self::Syslog(socket) => {
                let message = syslog_message(level, line);
                socket.send(&message).map(drop).or_else(|_| {
                    // The daemon was started anew: its socket is another one now.
                    *self = Self::syslog()?;
                    match self {
                        Self::Syslog(socket) => socket.send(&message).map(drop),
                        Self::Stderr | Self::File(_) | Self::Nowhere => Ok(()),
                    }
                })
            }
            Self::Nowhere => Ok(()),
        }
    }
}

fn syslog_message(level: Level, line: &[u8]) -> Vec<u8> {
    const FACILITY_DAEMON: u8 = 3 << 3;
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let start = format!("<{}>annals[{}]: ", FACILITY_DAEMON | severity, std::process::id());
    [start.as_bytes(), line.trim_ascii_end()].concat()
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let seconds = since.ok().and_then(|since| i64::try_from(since.as_secs()).ok());
    seconds.and_then(Timestamp::from_epoch).unwrap_or(Timestamp::EPOCH)
}

/// Names in a store are anybody's: none of them may begin a line of its own, or speak to a terminal.
fn one_line(line: &[u8]) -> Vec<u8> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let mut plain: Vec<u8> = text.iter().map(|byte| if byte.is_ascii_control() { b'?' } else { *byte }).collect();
    plain.push(b'\n');
    plain
}

static TARGET: Mutex<Target> = Mutex::new(Target::Stderr);

/// Sends all further lines to `target`.
pub(super) fn redirect(target: Target) {
    *TARGET.lock().unwrap_or_else(PoisonError::into_inner) = target;
}

/// One line on its way to the target of the moment; `plain` where it has no colours that must be kept.
struct Line {
    level: Level,
    plain: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
        if self.plain {
            target.write(self.level, &one_line(line))?;
        } else {
            target.write(self.level, line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Lines {
    plain: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { level: Level::INFO, plain: self.plain }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line { level: *meta.level(), plain: self.plain }
    }
}

/// Starts logging: warnings, and with each `-v` a level more, unless `ANNALS_LOG` says otherwise. `plain` where lines may
/// end up in a file.
pub(super) fn start(verbose: u8, plain: bool) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(level));
    let coloured = !plain && super::output::colour_wanted(&io::stderr());
    // A second start, as tests in one process would do, leaves the first in place.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines { plain: !coloured })
        .with_ansi(coloured)
        .without_time()
        .with_target(false)
        // A line that cannot be written is lost. To say so on standard error, as is usual, panics where that is what cannot be
        // written to, and takes the work along that had something to say.
        .log_internal_errors(false)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_syslog_has_the_daemons_facility_and_its_own_severity() {
        let message = String::from_utf8(syslog_message(Level::ERROR, b"ERROR read failed\n")).unwrap();
        assert_eq!(message, format!("<27>annals[{}]: ERROR read failed", std::process::id()));
        assert!(syslog_message(Level::WARN, b"x").starts_with(b"<28>"));
    }

    #[test]
    fn a_name_cannot_begin_a_line_of_its_own() {
        assert_eq!(one_line(b"guest a\nERROR b\x1b[2J: bad\n"), b"guest a?ERROR b?[2J: bad\n");
        assert_eq!(one_line(b""), b"\n");
    }

    #[test]
    fn lines_are_added_to_a_log_file_with_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let mut target = Target::file(&path).unwrap();
        target.write(Level::INFO, b"one\n").unwrap();
        target.write(Level::INFO, b"two\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "before"));
        assert!(lines[1].ends_with("Z one") && lines[2].ends_with("Z two"), "{text}");
    }
}
