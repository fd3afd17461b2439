//! One file for each command.

pub mod adapter;
pub mod backup;
pub mod bench;
pub mod eval;
pub mod flags;
pub mod journal;
mod line;
mod operator;
pub mod replay;
pub mod report;
pub mod serve;
mod started;
mod table;

use std::process::ExitCode;

use clap::Parser;

/// A gateway for fine-tuned language models: one base, many LoRA adapters
#[derive(Debug, Parser)]
#[command(name = "tunegate", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Adapter(adapter::AdapterArgs),
    Eval(eval::EvalArgs),
    Journal(Box<journal::JournalArgs>),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Flags(flags::FlagsArgs),
    Report(report::ReportArgs),
    Replay(Box<replay::ReplayArgs>),
    Bench(bench::BenchArgs),
}

/// Runs the command line of this process. Exit codes: 0 done, 1 failed, 2 not understood.
pub fn run(line: Vec<String>) -> ExitCode {
    if line.get(1).is_some_and(|command| command == "serve") {
        return serve::run(line::read(&line[2..]));
    }
    match Cli::parse_from(line).command {
        // Global flags before the command, of which there are none that do not end by themselves.
        Command::Serve(args) => serve::run(line::Line::of(*args)),
        Command::Adapter(args) => code(adapter::run(args)),
        Command::Eval(args) => code(eval::run(args)),
        Command::Journal(args) => code(journal::run(*args)),
        Command::Backup(args) => code(backup::backup(args)),
        Command::Restore(args) => code(backup::restore(args)),
        Command::Flags(args) => code(flags::run(args)),
        Command::Report(args) => code(report::run(args)),
        Command::Replay(args) => replay::run(*args),
        Command::Bench(args) => code(bench::run(args)),
    }
}

/// What is said of a server that gave no answer.
fn nobody(url: &str, error: &ureq::Error, flags: &str) -> String {
    let connecting = matches!(error, ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound);
    let hint = if connecting { format!("; is a server running there? ({flags})") } else { String::new() };
    format!("{url}: {error}{hint}")
}

fn code(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("tunegate: {reason}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
