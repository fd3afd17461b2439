//! The command line of `tunegate serve`, read to its end whatever is wrong with it: clap stops at the first fault, and a
//! pasted line has several.

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::{Cli, Command, serve::ServeArgs};
use crate::config::vllm;

/// What a line says, as far as it can be understood.
pub struct Line {
    pub args: ServeArgs,
    /// Flags without effect, one line each.
    pub warnings: Vec<String>,
    /// What is not understood or refused, one line each.
    pub faults: Vec<String>,
    /// Whether words were passed over that may have named the model.
    pub lost_words: bool,
}

impl Line {
    /// A line that was understood.
    pub fn of(args: ServeArgs) -> Self {
        Self { args, warnings: Vec::new(), faults: Vec::new(), lost_words: false }
    }
}

/// Reads the arguments after `serve`. Help and the version are printed at once, and end the process.
pub fn read(arguments: &[String]) -> Line {
    let translated = vllm::translate(arguments);
    let (warnings, mut faults) = (translated.warnings, translated.refused);
    let whole = match parse(&translated.line) {
        Ok(args) => return Line { warnings, faults, ..Line::of(args) },
        Err(error) => error,
    };
    let (mut understood, mut args, mut lost_words) = (Vec::new(), None, false);
    for group in groups(&translated.line) {
        let more = [understood.as_slice(), group].concat();
        match parse(&more) {
            Ok(parsed) => (understood, args) = (more, Some(parsed)),
            Err(error) => {
                lost_words |= group.len() > 1;
                faults.push(in_one_line(&error));
            }
        }
    }
    match args.map_or_else(|| parse(&[]), Ok) {
        Ok(args) => Line { args, warnings, faults, lost_words },
        // Nothing at all was understood, not even silence.
        Err(_) => whole.exit(),
    }
}

fn parse(line: &[String]) -> Result<ServeArgs, clap::Error> {
    let words = ["tunegate", "serve"].into_iter().map(str::to_owned).chain(line.iter().cloned());
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Serve(args) }) => Ok(*args),
        Ok(_) => Err(Cli::command().error(ErrorKind::InvalidSubcommand, "this is not `serve`")),
        Err(error) if error.use_stderr() => Err(error),
        // Help or the version.
        Err(error) => error.exit(),
    }
}

/// Each flag with the words behind it; words before the first flag come first.
fn groups(line: &[String]) -> Vec<&[String]> {
    let mut starts: Vec<usize> = (0..line.len()).filter(|&at| at == 0 || is_flag(&line[at])).collect();
    starts.push(line.len());
    starts.windows(2).map(|ends| &line[ends[0]..ends[1]]).collect()
}

fn is_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic()))
}

/// The error with its tips, without usage and further help.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For "))
    {
        match part.strip_prefix("tip: ") {
            _ if part.is_empty() => {}
            Some(tip) => line.push_str(&format!("; {tip}")),
            None if line.is_empty() => line.push_str(part.trim_start_matches("error: ")),
            None => line.push_str(&format!(" {part}")),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Line {
        read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_fault_of_a_line_is_told_and_the_rest_is_understood() {
        let line = read_line(
            "org/model --port many --prot 1 --max-num-seqs 8 --log-format xml --quantization fp8 --max-loras -3 \
             --max-model-len 8K --host ::1",
        );
        for part in [
            "--quantization",
            "'many' for '--port",
            "unexpected argument '--prot' found; a similar argument exists: '--port'",
            "'xml' for '--log-format",
            "[possible values: json, text]",
            "--max-loras",
        ] {
            assert!(line.faults.iter().any(|fault| fault.contains(part)), "{part} is not in {:#?}", line.faults);
        }
        assert_eq!(line.faults.len(), 5, "{:#?}", line.faults);
        assert!(line.faults.iter().all(|fault| !fault.contains('\n')), "{:#?}", line.faults);
        assert!(line.lost_words, "'1' stood behind a flag that is not known");
        let said = format!("{:?}", line.args);
        for part in ["Some(\"org/model\")", "max_num_seqs: Some(8)", "Some(8192)", "Some(\"::1\")"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }

    #[test]
    fn what_is_said_twice_or_against_itself_is_a_fault() {
        let line = read_line("org/model --model other --port 1 --port 2");
        assert_eq!(line.faults.len(), 2, "{:#?}", line.faults);
        assert!(line.faults[0].contains("cannot be used with"), "{:#?}", line.faults);
        assert!(line.faults[1].contains("--port"), "{:#?}", line.faults);
        assert!(read_line("org/model --max-model-len -1").faults.is_empty());
    }
}
