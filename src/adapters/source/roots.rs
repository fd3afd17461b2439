//! Where a load request may point: folders below configured roots, and nothing else.

use std::path::{Component, Path, PathBuf};

use crate::adapters::faults::shown;

/// The folders below which load requests may name adapters.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<PathBuf>);

/// Why a path is not read. The words never tell what is outside the roots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    #[error("no folder is named from which adapters may be loaded (--adapter-root, or --adapter-dir)")]
    NoRoot,
    #[error("'{given}' is a URL; adapters are loaded from configured places only, never from a free URL")]
    Url { given: String },
    #[error("'{given}' is not below a folder from which adapters may be loaded (--adapter-root)")]
    Outside { given: String },
    #[error("there is no adapter folder '{given}'")]
    Absent { given: String },
}

impl Roots {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The root and the folder that a request's path means: absolute, or relative to the first root that has it. Neither
    /// `..` nor links lead out of the root; both paths are canonical.
    ///
    /// # Errors
    /// [`RootsError`]. What lies outside is not looked at.
    pub fn resolve(&self, given: &str) -> Result<(PathBuf, PathBuf), RootsError> {
        if self.0.is_empty() {
            return Err(RootsError::NoRoot);
        }
        if given.contains("://") {
            return Err(RootsError::Url { given: shown(given) });
        }
        let outside = || RootsError::Outside { given: shown(given) };
        let path = Path::new(given);
        let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
        if given.trim().is_empty() || given.contains('\0') || !plain {
            return Err(outside());
        }
        let mut inside = false;
        for root in &self.0 {
            let Ok(canonical) = root.canonicalize() else { continue };
            let relative = match path.is_absolute() {
                true => path.strip_prefix(root).or_else(|_| path.strip_prefix(&canonical)).ok(),
                false => Some(path),
            };
            let Some(relative) = relative else { continue };
            inside = true;
            let Ok(folder) = canonical.join(relative).canonicalize() else { continue };
            if !folder.starts_with(&canonical) {
                return Err(outside());
            }
            if folder.is_dir() {
                return Ok((canonical, folder));
            }
        }
        if inside || !path.is_absolute() { Err(RootsError::Absent { given: shown(given) }) } else { Err(outside()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_path_below_a_root_is_found_absolute_or_relative_and_through_links_that_stay_inside() {
        let place = tempfile::tempdir().unwrap();
        let (one, two) = (place.path().join("one"), place.path().join("two"));
        fs::create_dir_all(one.join("team/sql")).unwrap();
        fs::create_dir_all(two.join("poet")).unwrap();
        symlink("team/sql", one.join("latest")).unwrap();
        symlink(&two, place.path().join("alias")).unwrap();
        let roots = Roots::new(vec![place.path().join("missing"), one.clone(), place.path().join("alias")]);
        let canonical = |path: &Path| path.canonicalize().unwrap();
        let sql = Ok((canonical(&one), canonical(&one.join("team/sql"))));
        for given in ["team/sql", "./team/sql/", "latest", one.join("team/sql").to_str().unwrap()] {
            assert_eq!(roots.resolve(given), sql, "{given}");
        }
        let poet = Ok((canonical(&two), canonical(&two.join("poet"))));
        for given in ["poet", two.join("poet").to_str().unwrap(), place.path().join("alias/poet").to_str().unwrap()] {
            assert_eq!(roots.resolve(given), poet, "{given}");
        }
    }

    #[test]
    fn nothing_leads_out_and_what_is_outside_is_not_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("in")).unwrap();
        fs::create_dir_all(place.path().join("secret")).unwrap();
        fs::create_dir_all(place.path().join("root-2/x")).unwrap();
        symlink(place.path().join("secret"), root.join("out")).unwrap();
        symlink("/", root.join("all")).unwrap();
        let roots = Roots::new(vec![root.clone()]);
        let there = place.path().join("secret");
        for given in [
            "..",
            "../secret",
            "in/../../secret",
            "in/..",
            "out",
            "all/etc",
            "",
            " ",
            "in\0",
            "/",
            "/etc",
            there.to_str().unwrap(),
            "/no/such/thing",
            place.path().join("root-2/x").to_str().unwrap(),
            root.join("../secret").to_str().unwrap(),
        ] {
            assert!(matches!(roots.resolve(given), Err(RootsError::Outside { .. })), "{given:?}");
        }
        for given in ["http://x/y", "file:///etc", "s3://b/k", "HTTPS://x"] {
            assert!(matches!(roots.resolve(given), Err(RootsError::Url { .. })), "{given}");
        }
        for given in ["missing", "in/deeper", root.join("missing").to_str().unwrap()] {
            assert!(matches!(roots.resolve(given), Err(RootsError::Absent { .. })), "{given}");
        }
        assert_eq!(Roots::default().resolve("in"), Err(RootsError::NoRoot));
    }
}
