//! What a server would make of adapters, without one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    adapters::{
        AdapterLimits, Refusal,
        check::{AdapterPlan, Checked, check_configured, check_folder, compare_base},
    },
    config::AdapterConfig,
    model::{self, ModelSource},
};

/// What is asked.
pub enum Question {
    List,
    Check { folders: Vec<PathBuf> },
}

pub struct Outcome {
    pub text: String,
    /// Why the command fails all the same.
    pub refused: Option<String>,
}

/// Checks what a server with these settings would read, or folders, against a base model.
///
/// # Errors
/// If the model's description or a folder of adapters cannot be read.
pub fn outcome(question: &Question, json: bool, config: &AdapterConfig, model: &Path) -> Result<Outcome, String> {
    let source = ModelSource::detect(model).map_err(|error| error.to_string())?;
    let shape = model::shape_of(&source).map_err(|error| error.to_string())?;
    match question {
        Question::List => {
            let checked = check_configured(config, &shape).map_err(|error| error.to_string())?;
            Ok(Outcome { text: if json { as_json(&checked) } else { table(&checked) }, refused: None })
        }
        Question::Check { folders } => {
            let limits = AdapterLimits::from(config);
            // A model that has no name yet is known by its file's.
            let names: Vec<String> =
                model.file_name().map(|name| name.to_string_lossy().into_owned()).into_iter().collect();
            let check = |folder: &PathBuf| -> Result<Checked, String> {
                let found = match check_folder(folder, &shape, limits) {
                    Ok(plan) => {
                        compare_base(plan, &names, || model::digest_of(&source)).map_err(|error| error.to_string())?
                    }
                    Err(refusals) => Err(refusals),
                };
                Ok((folder.display().to_string(), found))
            };
            let checked = folders.iter().map(check).collect::<Result<Vec<Checked>, String>>()?;
            let refused = match checked.iter().filter(|(_, plan)| plan.is_err()).count() {
                0 => None,
                refused => Some(format!("{refused} of {} refused", checked.len())),
            };
            Ok(Outcome { text: if json { as_json(&checked) } else { in_full(&checked) }, refused })
        }
    }
}

fn as_json(checked: &[Checked]) -> String {
    let entry = |(name, plan): &Checked| match plan {
        Ok(plan) => json!({ "name": name, "plan": plan }),
        Err(refusals) => json!({ "name": name, "refused": refusals }),
    };
    format!("{:#}\n", Value::from_iter(checked.iter().map(entry)))
}

fn in_full(checked: &[Checked]) -> String {
    let mut text = String::new();
    for (name, plan) in checked {
        match plan {
            Ok(plan) => text.push_str(&format!("{name}\n{plan}\n")),
            Err(refusals) => text.push_str(&format!("{name}\n{}\n", reasons(refusals))),
        }
    }
    text
}

fn reasons(refusals: &[Refusal]) -> String {
    let line = |refusal: &Refusal| format!("refused  {}  [{}]\n", refusal, refusal.code.as_str());
    refusals.iter().map(line).collect()
}

fn table(checked: &[Checked]) -> String {
    if checked.is_empty() {
        return "no adapters; --adapter-dir and --lora-modules name them\n".to_owned();
    }
    let cells = |plan: &AdapterPlan| {
        let rank = plan.sites.iter().map(|site| site.rank).max().unwrap_or(0);
        let about = plan.description.clone().unwrap_or_default();
        [plan.version.short(), format!("r {rank}"), format!("{} sites", plan.sites.len()), about]
    };
    let width = checked.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, plan) in checked {
        let line = match plan {
            Ok(plan) => {
                let [version, rank, sites, about] = cells(plan);
                format!("{name:<width$}  {version}  {rank:>5}  {sites:>10}  {about}")
            }
            Err(refusals) => {
                let first = refusals.first().map(ToString::to_string).unwrap_or_default();
                let more = match refusals.len() {
                    0 | 1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                format!("{name:<width$}  refused: {first}{more}")
            }
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
    }

    fn ask(question: &Question, json: bool, config: &AdapterConfig) -> Outcome {
        outcome(question, json, config, &golden("models/llama")).unwrap()
    }

    #[test]
    fn check_prints_the_plan_of_a_good_folder_and_every_reason_against_a_bad_one() {
        let folders = vec![golden("adapters/llama/rslora"), golden("later/llama/alora")];
        let outcome = ask(&Question::Check { folders }, false, &AdapterConfig::default());
        assert!(outcome.text.contains("model.layers.1.self_attn.v_proj     8     12  4.2426405  8×64  32×8    f32"));
        assert!(outcome.text.contains("refused  alora_invocation_tokens: means activated LoRA"), "{}", outcome.text);
        assert_eq!(outcome.refused.as_deref(), Some("1 of 2 refused"));
    }

    #[test]
    fn check_answers_machines_in_json() {
        let folders = vec![golden("adapters/llama/rslora"), golden("later/llama/pissa")];
        let outcome = ask(&Question::Check { folders }, true, &AdapterConfig::default());
        let json: Value = serde_json::from_str(&outcome.text).unwrap();
        assert_eq!(json[0]["plan"]["sites"][0]["rank"], 8);
        assert_eq!(json[1]["refused"][0]["code"], "base_changing");
        assert_eq!(json[1]["refused"][0]["subject"], "init_lora_weights");
    }

    #[test]
    fn check_refuses_what_was_made_for_another_base_and_notes_another_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden("adapters/llama/rslora").join(file), folder.path().join(file)).unwrap();
        }
        let check = |digest: &str| {
            std::fs::write(folder.path().join("adapter.toml"), format!("base_digest = '{digest}'")).unwrap();
            let question = Question::Check { folders: vec![folder.path().to_owned()] };
            ask(&question, true, &AdapterConfig::default()).text
        };
        let digest = model::digest_of(&ModelSource::detect(&golden("models/llama")).unwrap()).unwrap();
        let (good, bad) = (check(&digest.short()), check("0123456789ab"));
        assert!(good.contains("\"plan\"") && good.contains(&digest.short()), "{good}");
        assert!(bad.contains("\"code\": \"base\"") && bad.contains(&digest.to_string()), "{bad}");
        assert!(check("none").contains("malformed_config"));
    }

    #[test]
    fn list_shows_what_a_server_would_serve_and_refuse() {
        let mut config = AdapterConfig { dirs: vec![golden("adapters/llama")], ..Default::default() };
        config.modules = vec![("mine".to_owned(), golden("later/llama/alora"))];
        let outcome = ask(&Question::List, false, &config);
        let lines: Vec<&str> = outcome.text.lines().collect();
        assert_eq!(lines.len(), 19, "{}", outcome.text);
        assert!(lines[0].starts_with("mine") && lines[0].contains("refused: alora_invocation_tokens"), "{}", lines[0]);
        assert!(
            lines.iter().any(|line| line.starts_with("all7 ") && line.contains("r 4    14 sites")),
            "{}",
            outcome.text
        );
        assert_eq!(outcome.refused, None);
        assert!(ask(&Question::List, false, &AdapterConfig::default()).text.starts_with("no adapters"));
        config.dirs = vec!["/no/such/folder".into()];
        assert!(super::outcome(&Question::List, false, &config, &golden("models/llama")).is_err());
    }

    #[test]
    fn the_demo_sizes_come_from_a_gguf_file_too() {
        let folders = vec![golden("adapters/wide/all7")];
        let file = std::fs::read_dir(golden("gguf")).unwrap().map(|entry| entry.unwrap().path());
        let file = file.into_iter().find(|path| path.to_string_lossy().contains("wide-")).unwrap();
        let outcome = outcome(&Question::Check { folders }, false, &AdapterConfig::default(), &file).unwrap();
        assert_eq!(outcome.refused, None, "{}", outcome.text);
    }
}
