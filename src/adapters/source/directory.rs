//! Adapters in folders of this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Findings, Found};
use crate::{
    adapters::{ManagedBy, Refusal, RefusalCode, SourceFolder, faults::shown, folder::CONFIG_FILE},
    terms::{AdapterName, NameError},
};

/// How deep below a root adapters may lie, and how many folders are looked at.
const MAX_DEPTH: usize = 8;
const MAX_FOLDERS: usize = 100_000;

/// Finds the adapters of one source folder, in order of their names.
///
/// # Errors
/// If a root does not exist or cannot be listed. A named folder is not looked at here: reading it tells what is wrong.
pub fn find(folder: &SourceFolder) -> io::Result<Findings> {
    let mut findings = Findings::default();
    match folder {
        SourceFolder::Named { name, path } => {
            findings.found.push(Found {
                name: name.clone(),
                root: path.clone(),
                path: path.clone(),
                managed_by: ManagedBy::Flag,
            });
        }
        SourceFolder::Root(root) => {
            let mut folders = Vec::new();
            let mut left = MAX_FOLDERS;
            collect(root, MAX_DEPTH, &mut left, &mut folders)?;
            folders.sort();
            for path in folders {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                let form = || NameError::Form { name: shown(&relative.to_string_lossy()) };
                match relative.to_str().ok_or_else(form).and_then(AdapterName::parse) {
                    Ok(name) => {
                        findings.found.push(Found { name, root: root.clone(), path, managed_by: ManagedBy::Folder });
                    }
                    Err(error) => {
                        let name = shown(&relative.to_string_lossy());
                        let refusal =
                            Refusal { code: RefusalCode::Name, subject: name.clone(), reason: error.to_string() };
                        findings.refused.push((name, refusal));
                    }
                }
            }
        }
    }
    Ok(findings)
}

/// Every folder below `folder` that holds a configuration. Hidden folders are passed over. A link to an adapter is one
/// too (reading it tells whether it leads out of the root), but links are not searched: a circle of them has no end.
fn collect(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") || !(kind.is_dir() || kind.is_symlink()) {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other(format!("more than {MAX_FOLDERS} folders")))?;
        let path = entry.path();
        if path.join(CONFIG_FILE).symlink_metadata().is_ok() {
            found.push(path.clone());
        }
        if depth > 1 && kind.is_dir() {
            collect(&path, depth - 1, left, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_a_configuration_are_named_by_their_path_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        for adapter in ["triage", "team/sql", "team/sql/v2", ".git/x", "bad name"] {
            let path = root.path().join(adapter);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(CONFIG_FILE), "{}").unwrap();
        }
        std::fs::create_dir(root.path().join("empty")).unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("circle")).unwrap();
        std::os::unix::fs::symlink(root.path().join("triage"), root.path().join("latest")).unwrap();
        let findings = find(&SourceFolder::Root(root.path().to_path_buf())).unwrap();
        let names: Vec<&str> = findings.found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["latest", "team/sql", "team/sql/v2", "triage"]);
        assert_eq!(findings.refused.len(), 1);
        assert_eq!((findings.refused[0].0.as_str(), findings.refused[0].1.code), ("bad name", RefusalCode::Name));
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        assert!(find(&SourceFolder::Root("/no/such/folder".into())).is_err());
    }
}
