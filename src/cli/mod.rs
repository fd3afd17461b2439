//! One file for each command.

pub mod adapter;
pub mod bench;
pub mod eval;
mod operator;
pub mod replay;
pub mod serve;
mod started;

use std::process::ExitCode;

use clap::Parser;

use crate::config::vllm;

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
    Replay(Box<replay::ReplayArgs>),
    Bench(bench::BenchArgs),
}

/// Runs the command line of this process. Exit codes: 0 done, 1 failed, 2 not understood.
pub fn run(mut line: Vec<String>) -> ExitCode {
    let mut warnings = Vec::new();
    if line.get(1).is_some_and(|command| command == "serve") {
        match vllm::translate(&line[2..]) {
            Ok(translated) => {
                line.truncate(2);
                line.extend(translated.line);
                warnings = translated.warnings;
            }
            Err(refused) => {
                refused.iter().for_each(|reason| eprintln!("tunegate: {reason}"));
                return ExitCode::from(2);
            }
        }
    }
    let cli = match Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Serve(args) => serve::run(*args, warnings),
        Command::Adapter(args) => code(adapter::run(args)),
        Command::Eval(args) => code(eval::run(args)),
        Command::Replay(args) => replay::run(*args),
        Command::Bench(args) => code(bench::run(args)),
    }
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
