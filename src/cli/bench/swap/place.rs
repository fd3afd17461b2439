//! Adapters in a folder of their own: each name gets its own versions, with the weights that were given and bytes of its
//! own, so that the memory of a version belongs to one name.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::server::Server;
use crate::{
    adapters::folder::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
    cli::started,
};

/// A folder that can be loaded.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Below the server's root.
    pub path: String,
    /// Which of the given adapters its weights are.
    pub kind: usize,
}

/// The adapters of one run.
pub struct Place {
    root: PathBuf,
    kinds: usize,
    alone: Vec<Adapter>,
    /// By name, then kind.
    named: Vec<Vec<Adapter>>,
    cold: Vec<Adapter>,
}

impl Place {
    /// Copies `given` for each name, where the server's data will be.
    pub fn make(given: &[PathBuf], names: usize, cold: &Path, colds: usize) -> Result<Self, String> {
        let root = started::place().join("adapters");
        let copy_of = |from: &Path, path: String, kind: usize| {
            let failed = |error: std::io::Error| format!("{}: {error}", from.display());
            copy(from, &root.join(&path), &path).map_err(failed)?;
            Ok(Adapter { path, kind })
        };
        let copy = |path: String, kind: usize| copy_of(&given[kind], path, kind);
        let kinds = given.len();
        let made = (|| {
            Ok(Self {
                alone: (0..kinds).map(|kind| copy(format!("alone-{kind}"), kind)).collect::<Result<_, String>>()?,
                named: (0..names)
                    .map(|name| (0..kinds).map(|kind| copy(format!("name-{name}-{kind}"), kind)).collect())
                    .collect::<Result<_, String>>()?,
                cold: (0..colds)
                    .map(|index| copy_of(cold, format!("cold-{index}"), 0))
                    .collect::<Result<_, String>>()?,
                kinds,
                root: root.clone(),
            })
        })();
        if made.is_err() {
            // Ours alone; what cannot be removed is the system's to clean.
            let _ = fs::remove_dir_all(started::place());
        }
        made
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn kinds(&self) -> usize {
        self.kinds
    }

    /// One of each kind.
    pub fn alone(&self) -> &[Adapter] {
        &self.alone
    }

    pub fn adapter(&self, name: usize, kind: usize) -> &Adapter {
        &self.named[name][kind]
    }

    pub fn cold(&self) -> &[Adapter] {
        &self.cold
    }

    /// The kind of each version that names go through, by the version's first digits.
    pub fn versions(&self, server: &Server) -> Result<HashMap<String, usize>, String> {
        self.named.iter().flatten().map(|adapter| Ok((server.version_of(adapter)?, adapter.kind))).collect()
    }
}

fn copy(from: &Path, to: &Path, description: &str) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        fs::copy(from.join(file), to.join(file))?;
    }
    fs::write(to.join(MANIFEST_FILE), format!("description = \"{description}\"\n"))
}
