//! Which names there are, which version each has now, and which it had.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    AdapterCard, AdapterError, Refusal,
    faults::shown,
    vault::{NamedVersion, Vault},
};
use crate::terms::{AdapterName, AdapterVersion};

/// Names and versions of one server.
#[derive(Debug, Default)]
pub struct Catalog {
    served: BTreeMap<AdapterName, Served>,
    refused: BTreeMap<String, Arc<Vec<Refusal>>>,
    /// Every version that a name had, oldest first; also of names that are no longer served.
    histories: BTreeMap<AdapterName, Vec<NamedVersion>>,
    base_names: Vec<String>,
}

/// A name that is served.
#[derive(Clone, Debug)]
pub struct Served {
    pub version: AdapterVersion,
    pub since: i64,
    pub card: Arc<AdapterCard>,
    /// Bytes that its packed weights take.
    pub packed_bytes: u64,
}

impl Catalog {
    /// Begins with the histories that the vault holds.
    pub fn open(vault: &Vault, base_names: Vec<String>) -> io::Result<Self> {
        Ok(Self { histories: vault.histories()?, base_names, ..Self::default() })
    }

    /// Gives a name a version that the vault holds, durable when this returns.
    pub fn serve(
        &mut self,
        vault: &Vault,
        name: AdapterName,
        version: AdapterVersion,
        card: Arc<AdapterCard>,
        packed_bytes: u64,
    ) -> io::Result<()> {
        let history = self.histories.entry(name.clone()).or_default();
        let since = match history.last() {
            Some(last) if last.version == version => last.since,
            Some(_) | None => {
                let since = now();
                history.push(NamedVersion { since, version });
                vault.write_history(&name, history)?;
                since
            }
        };
        self.served.insert(name, Served { version, since, card, packed_bytes });
        Ok(())
    }

    pub fn refuse(&mut self, name: String, refusals: Vec<Refusal>) {
        self.refused.entry(name).or_insert_with(|| Arc::new(refusals));
    }

    /// Whether a folder came under this name already, served or refused.
    pub fn is_taken(&self, name: &AdapterName) -> bool {
        self.served.contains_key(name) || self.refused.contains_key(name.as_str())
    }

    pub fn refused(&self) -> impl Iterator<Item = (&str, &[Refusal])> {
        self.refused.iter().map(|(name, refusals)| (name.as_str(), refusals.as_slice()))
    }

    pub fn served(&self) -> impl Iterator<Item = (&AdapterName, &Served)> {
        self.served.iter()
    }

    /// What a version of this run is known to be.
    pub fn known(&self, version: AdapterVersion) -> Option<&Served> {
        self.served.values().find(|served| served.version == version)
    }

    /// # Errors
    /// [`AdapterError::Refused`] for a name that stands there and cannot serve, else [`AdapterError::Unknown`].
    pub fn find(&self, name: &str) -> Result<(AdapterName, AdapterVersion), AdapterError> {
        if let Some((name, served)) = self.served.get_key_value(name) {
            return Ok((name.clone(), served.version));
        }
        match self.refused.get(name) {
            Some(refusals) => Err(AdapterError::Refused { name: name.to_owned(), refusals: Arc::clone(refusals) }),
            None => Err(self.unknown(name)),
        }
    }

    /// Any version that the name has or had, by the first digits of it.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::UnknownVersion`], [`AdapterError::AmbiguousVersion`].
    pub fn find_version(&self, name: &str, prefix: &str) -> Result<(AdapterName, AdapterVersion), AdapterError> {
        let Some((name, history)) = self.histories.get_key_value(name) else {
            return self.find(name).and(Err(self.unknown(name)));
        };
        let mut fits: Vec<AdapterVersion> =
            history.iter().map(|named| named.version).filter(|version| version.0.starts_with(prefix)).collect();
        fits.sort_unstable();
        fits.dedup();
        match fits.as_slice() {
            [version] => Ok((name.clone(), *version)),
            [] => Err(AdapterError::UnknownVersion { name: name.clone(), prefix: shown(prefix) }),
            several => {
                Err(AdapterError::AmbiguousVersion { name: name.clone(), prefix: shown(prefix), count: several.len() })
            }
        }
    }

    fn unknown(&self, name: &str) -> AdapterError {
        let names = self.served.keys().map(AdapterName::as_str).chain(self.base_names.iter().map(String::as_str));
        AdapterError::Unknown { name: shown(name), nearest: nearest(name, names).map(str::to_owned) }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The name that takes the fewest single changes to reach; among equals the first. Nothing is near a name much longer
/// than any that can exist.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = wanted.chars().take(2 * AdapterName::MAX_BYTES + 1).collect();
    if wanted.len() > 2 * AdapterName::MAX_BYTES {
        return None;
    }
    names.filter(|name| !name.is_empty()).min_by_key(|name| edit_distance(&wanted, name))
}

/// Insertions, deletions and replacements of characters, capitals counting as small letters.
fn edit_distance(wanted: &[char], name: &str) -> usize {
    let mut row: Vec<usize> = (0..=wanted.len()).collect();
    for (done, letter) in name.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (index, other) in wanted.iter().enumerate() {
            let replaced = diagonal + usize::from(!letter.eq_ignore_ascii_case(other));
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[wanted.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_takes_the_fewest_changes() {
        let names = ["ticket-triage", "house-style", "base"];
        for (wanted, near) in
            [("ticket_triage", "ticket-triage"), ("HOUSE-STYL", "house-style"), ("bass", "base"), ("", "base")]
        {
            assert_eq!(nearest(wanted, names.into_iter()), Some(near), "{wanted}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), names.into_iter()), None);
        assert_eq!(nearest("a", std::iter::empty()), None);
        assert_eq!(edit_distance(&['k', 'i', 't', 't', 'e', 'n'], "sitting"), 3);
    }
}
