//! Where adapters come from. A source finds folders and names them; it reads no weights.

pub mod directory;
mod roots;

use std::path::{Path, PathBuf};

pub use roots::{Roots, RootsError};

use super::{AdapterError, ManagedBy, Refusal, RefusalCode, SourceFolder, faults::shown};
use crate::{config::AdapterConfig, terms::AdapterName};

/// A folder that should be an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: AdapterName,
    /// Links in the folder may not lead out of here.
    pub root: PathBuf,
    pub path: PathBuf,
    /// Whether a flag named it, or its folder did.
    pub managed_by: ManagedBy,
}

/// What sources give: folders with their names, and those whose names cannot be used.
#[derive(Debug, Default)]
pub struct Findings {
    pub found: Vec<Found>,
    pub refused: Vec<(String, Refusal)>,
}

impl Findings {
    fn extend(&mut self, more: Self) {
        self.found.extend(more.found);
        self.refused.extend(more.refused);
    }
}

/// Asks every configured source. A name given with a path comes before the same name in a folder.
///
/// # Errors
/// [`AdapterError::Unreadable`] for a folder of adapters that is not there.
pub fn configured(config: &AdapterConfig) -> Result<Findings, AdapterError> {
    let mut findings = Findings::default();
    for (name, path) in &config.modules {
        match AdapterName::parse(name) {
            Ok(name) => {
                let source = SourceFolder::Named { name, path: path.clone() };
                findings.extend(directory::find(&source).map_err(|error| not_listed(path, &error))?);
            }
            Err(error) => {
                let name = shown(name);
                let refusal = Refusal { code: RefusalCode::Name, subject: name.clone(), reason: error.to_string() };
                findings.refused.push((name, refusal));
            }
        }
    }
    for root in &config.dirs {
        let source = SourceFolder::Root(root.clone());
        findings.extend(directory::find(&source).map_err(|error| not_listed(root, &error))?);
    }
    Ok(findings)
}

/// For the operator who named the folder; it is not shown to clients.
fn not_listed(path: &Path, error: &std::io::Error) -> AdapterError {
    AdapterError::Unreadable { name: path.display().to_string(), reason: error.to_string() }
}
