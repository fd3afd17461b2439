//! Where adapters come from. A source finds folders and names them; it reads no weights.

pub mod directory;

use std::path::PathBuf;

use super::Refusal;
use crate::terms::AdapterName;

/// A folder that should be an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: AdapterName,
    /// Links in the folder may not lead out of here.
    pub root: PathBuf,
    pub path: PathBuf,
}

/// What a source gives: folders with their names, and those whose names cannot be used.
#[derive(Debug, Default)]
pub struct Findings {
    pub found: Vec<Found>,
    pub refused: Vec<(String, Refusal)>,
}

impl Findings {
    pub fn extend(&mut self, more: Self) {
        self.found.extend(more.found);
        self.refused.extend(more.refused);
    }
}
