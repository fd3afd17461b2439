//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let line = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    tunegate::cli::run(line)
}
