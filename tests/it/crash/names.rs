//! What is known of a name from outside: every change that was acknowledged, and the one that was under way.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tunegate::adapters::folder::AdapterFiles;

use super::{Chance, server::post};
use crate::support::golden;

/// A version of the tiny model's adapters.
#[derive(Debug)]
pub struct Version {
    /// Below the server's root.
    path: String,
    /// All of its digits.
    pub digest: String,
    /// What it answers to one prompt.
    pub answer: String,
}

/// Adapters that answer differently, each with an `adapter.toml`, copied below `root`.
pub fn versions(root: &Path) -> Vec<Version> {
    let copied = |path: &str| {
        let to = root.join(path);
        fs::create_dir_all(&to).expect("made");
        for entry in fs::read_dir(golden("adapters/llama").join(path)).expect("listed") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
        fs::write(to.join("adapter.toml"), format!("description = '{path}'\n")).expect("written");
        let files = AdapterFiles::read(root, &to, 1 << 20).unwrap_or_else(|refused| panic!("{path}: {refused:?}"));
        Version { path: path.to_owned(), digest: files.version().to_string(), answer: String::new() }
    };
    ["rslora", "all7", "plain-qv", "o-down"].map(copied).into()
}

/// A name and its history, as indices of versions; `None` where it was unloaded.
pub struct Name {
    pub name: String,
    acknowledged: Vec<Option<usize>>,
    /// Sent and not answered.
    under_way: Option<Option<usize>>,
}

impl Name {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), acknowledged: Vec::new(), under_way: None }
    }

    /// The version that it has, as far as is known.
    pub fn now(&self) -> Option<usize> {
        self.acknowledged.last().copied().flatten()
    }

    pub fn changes(&self) -> usize {
        self.acknowledged.len()
    }

    /// Takes what a restarted server says for what is known.
    ///
    /// # Errors
    /// If it is neither what was acknowledged nor that and the one change under way.
    pub fn settle(&mut self, found: Vec<Option<usize>>) -> Result<(), String> {
        let more = [self.acknowledged.as_slice(), self.under_way.as_slice()].concat();
        if found != self.acknowledged && found != more {
            let last = |steps: &[Option<usize>]| steps[steps.len().saturating_sub(3)..].to_vec();
            return Err(format!(
                "{} has {} steps that end on {:?}; {} were acknowledged, the last {:?}, and {:?} was under way",
                self.name,
                found.len(),
                last(&found),
                self.acknowledged.len(),
                last(&self.acknowledged),
                self.under_way
            ));
        }
        self.acknowledged = found;
        self.under_way = None;
        Ok(())
    }

    /// One change after another, each begun when the one before was answered, until the server is gone.
    ///
    /// # Errors
    /// An answer that is no acknowledgement.
    pub fn change_until_it_dies(&mut self, url: &str, versions: &[Version], chance: &mut Chance) -> Result<(), String> {
        loop {
            let others: Vec<usize> = (0..versions.len()).filter(|index| Some(*index) != self.now()).collect();
            let earlier: Vec<usize> =
                others.iter().copied().filter(|index| self.acknowledged.contains(&Some(*index))).collect();
            let kind = chance.below(8);
            let lives = match (self.now(), earlier.as_slice()) {
                (Some(_), _) if kind == 0 => self.unload(url)?,
                (_, [_, ..]) if kind < 4 => {
                    let index = earlier[chance.below(earlier.len())];
                    self.roll_back(url, index, &versions[index])?
                }
                _ => {
                    let index = others[chance.below(others.len())];
                    self.load(url, index, &versions[index])?
                }
            };
            if !lives {
                return Ok(());
            }
        }
    }

    /// False if the server died meanwhile.
    pub fn load(&mut self, url: &str, index: usize, version: &Version) -> Result<bool, String> {
        let body = json!({"lora_name": self.name, "lora_path": version.path, "load_inplace": true});
        self.change(&format!("{url}/v1/load_lora_adapter"), body, Some(index))
    }

    fn roll_back(&mut self, url: &str, index: usize, version: &Version) -> Result<bool, String> {
        let body = json!({"version": version.digest[..12]});
        self.change(&format!("{url}/v1/adapters/{}/rollback", self.name), body, Some(index))
    }

    fn unload(&mut self, url: &str) -> Result<bool, String> {
        self.change(&format!("{url}/v1/unload_lora_adapter"), json!({"lora_name": self.name}), None)
    }

    fn change(&mut self, url: &str, body: Value, to: Option<usize>) -> Result<bool, String> {
        self.under_way = Some(to);
        match post(url, &body) {
            None => Ok(false),
            Some((200, _)) => {
                self.acknowledged.push(to);
                self.under_way = None;
                Ok(true)
            }
            Some((status, answer)) => Err(format!("{}: {body} is answered {status}: {answer}", self.name)),
        }
    }
}
