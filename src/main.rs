//! The `annals` program: everything is in the library's command-line layer.

use std::process::ExitCode;

fn main() -> ExitCode {
    annals::cli::main()
}
