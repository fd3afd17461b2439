//! Lets a pasted `vllm serve` line start: spellings are brought into ours, flags that mean nothing here are named and
//! passed over, and those that would change what clients get are refused.

use super::vllm_flags::{FLAGS, NOTES, SHORT};

/// How many values follow a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    Nothing,
    One,
    Many,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It means here what it means there.
    Honoured,
    /// Accepted with a warning: why it has no effect.
    Ignored(&'static str),
    /// The server does not start: why.
    Refused(&'static str),
}

/// A command line in our spelling.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Translated {
    pub line: Vec<String>,
    /// One for each flag that has no effect.
    pub warnings: Vec<String>,
    /// One for each flag that keeps the server from starting.
    pub refused: Vec<String>,
}

/// Reads the arguments after `serve`.
pub fn translate(arguments: &[String]) -> Translated {
    let mut translated = Translated::default();
    let mut rest = arguments.iter().map(|argument| unquoted(argument)).peekable();
    while let Some(argument) = rest.next() {
        let Some(flag) = Flag::read(argument) else {
            translated.line.push(argument.to_owned());
            continue;
        };
        match flag.fate {
            Fate::Honoured if flag.values == Values::Nothing => {
                let value = flag.value.unwrap_or(if flag.negated { "false" } else { "true" });
                translated.line.push(format!("{}={value}", flag.name));
            }
            Fate::Honoured => {
                let value = flag.value.map(|value| format!("={}", unquoted(value)));
                translated.line.push(format!("{}{}", flag.name, value.unwrap_or_default()));
            }
            Fate::Ignored(reason) => {
                translated.warnings.push(format!("{} has no effect: {reason}", flag.name));
                flag.skip_values(&mut rest);
            }
            Fate::Refused(reason) => {
                if !flag.negated {
                    translated.refused.push(format!("{}: {reason}", flag.name));
                }
                flag.skip_values(&mut rest);
            }
        }
    }
    translated
}

/// KServe wraps JSON in literal single quotes for a shell that is not there.
fn unquoted(argument: &str) -> &str {
    argument.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(argument)
}

/// One of vLLM's flags as it stands on a line.
struct Flag<'a> {
    name: &'static str,
    values: Values,
    fate: Fate,
    /// `--no-…`
    negated: bool,
    /// What follows `=`.
    value: Option<&'a str>,
}

impl<'a> Flag<'a> {
    /// `None` for what is no flag of vLLM's: a value, or a flag of ours.
    fn read(argument: &'a str) -> Option<Self> {
        let (name, value) = argument.split_once('=').map_or((argument, None), |(name, value)| (name, Some(value)));
        // `--compilation-config.mode 3` sets one key of a JSON value.
        let (name, _) = name.split_once('.').unwrap_or((name, ""));
        let long = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
        let spelled = long.strip_prefix("--").map(|name| format!("--{}", name.replace('_', "-")))?;
        let find = |name: &str| FLAGS.iter().find(|(known, _, _)| *known == name).copied();
        let plain = find(&spelled);
        let negated = plain.is_none();
        let found = plain.or_else(|| {
            let positive = format!("--{}", spelled.strip_prefix("--no-")?);
            find(&positive).filter(|(_, values, _)| *values == Values::Nothing)
        });
        found.map(|(name, values, fate)| Self { name, values, fate, negated, value })
    }

    fn skip_values<'b>(&self, rest: &mut std::iter::Peekable<impl Iterator<Item = &'b str>>) {
        if self.value.is_some() {
            return;
        }
        match self.values {
            Values::Nothing => {}
            Values::One => {
                rest.next();
            }
            Values::Many => while rest.next_if(|value| !value.starts_with('-')).is_some() {},
        }
    }
}

/// The table as a page: `docs/vllm-flags.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# vLLM's flags\n\n\
         What becomes of each flag of `vllm serve` on a `tunegate serve` line. Underscores, `--flag=value`, `--no-flag`, short \
         forms and\nJSON in literal single quotes are read as vLLM reads them. Honoured flags are keys of the settings file as \
         well.\nThis page is checked against the table that the parser uses.\n\n| flag | |\n| --- | --- |\n",
    );
    for (flag, _, fate) in FLAGS {
        let short = SHORT.iter().find(|(_, long)| long == flag).map(|(short, _)| format!(", `{short}`"));
        let fate = match fate {
            Fate::Honoured => match NOTES.iter().find(|(noted, _)| noted == flag) {
                Some((_, note)) => format!("**honoured**: {note}"),
                None => "**honoured**".to_owned(),
            },
            Fate::Ignored(reason) => format!("accepted with a warning: {reason}"),
            Fate::Refused(reason) => format!("refused: {reason}"),
        };
        page.push_str(&format!("| `{flag}`{} | {fate} |\n", short.unwrap_or_default()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    fn read(line: &str) -> Translated {
        translate(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_honoured_flag_is_a_setting_of_ours() {
        for (flag, _, fate) in FLAGS {
            let ours = Layer::NAMES.iter().any(|name| Layer::flag(name) == *flag) || *flag == "--config";
            assert_eq!(ours, *fate == Fate::Honoured, "{flag}");
        }
    }

    #[test]
    fn a_pasted_line_is_brought_into_our_spelling() {
        let translated = read(
            "org/model --enable-lora --max_loras 4 --lora-modules a=/x b=/y -tp 2 --gpu-memory-utilization=0.9 \
             --no-enable-prefix-caching --compilation-config.mode 3 --served_model_name=m --dtype auto",
        );
        let line = "org/model --enable-lora=true --max-loras 4 --lora-modules a=/x b=/y \
                    --enable-prefix-caching=false --served-model-name=m --dtype auto";
        assert_eq!(translated.line.join(" "), line);
        assert_eq!(translated.warnings.len(), 3, "{:#?}", translated.warnings);
        assert!(translated.refused.is_empty(), "{:#?}", translated.refused);
    }

    #[test]
    fn kserves_line_starts_with_its_quotes() {
        let line = r#"--model /mnt/models --enable-lora --max-lora-rank=16 --lora-modules '{"name":"a","path":"/mnt/lora/a"}' --served-model-name m publishers/ns/models/m"#;
        let translated = read(line);
        assert!(
            translated.refused.is_empty()
                && translated.line.contains(&r#"{"name":"a","path":"/mnt/lora/a"}"#.to_owned()),
            "{translated:?}"
        );
    }

    #[test]
    fn what_would_change_answers_is_refused_with_its_reason() {
        let refused = read("m --quantization fp8 --ssl-keyfile /k --max-num-seqs 8").refused;
        assert_eq!(refused.len(), 2);
        assert!(refused[0].contains("precision of their file"), "{refused:?}");
        assert!(read("m --no-enable-prompt-embeds").refused.is_empty());
    }

    #[test]
    fn notes_are_about_honoured_flags() {
        for (noted, _) in NOTES {
            assert!(FLAGS.iter().any(|(flag, _, fate)| flag == noted && *fate == Fate::Honoured), "{noted}");
        }
    }

    #[test]
    fn the_page_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/vllm-flags.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/vllm-flags.md is out of date; write to it what `tunegate serve --vllm-flags` prints"
        );
    }
}
