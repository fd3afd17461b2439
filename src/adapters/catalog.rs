//! Which names there are, which version each has now, and which it had: the store's rows, in memory, with what is known of
//! the versions that serve.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{AdapterCard, AdapterError, Refusal, faults::shown};
use crate::{
    store::{NameRow, Operation, Step},
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Names and versions of one server.
#[derive(Debug, Default)]
pub struct Catalog {
    names: BTreeMap<AdapterName, Named>,
    /// What was asked to be served and cannot be, with every reason.
    refused: BTreeMap<String, Arc<Vec<Refusal>>>,
    /// Bytes of packed weights, of every version that was checked in this run.
    packed_bytes: HashMap<AdapterVersion, u64>,
    base_names: Vec<String>,
}

/// A name, everything that was done to it, and what it serves.
#[derive(Clone, Debug)]
pub struct Named {
    pub row: NameRow,
    /// Oldest first.
    pub steps: Vec<Step>,
    /// `None` where it has no version, or where its version does not serve on this base.
    pub serving: Option<Serving>,
}

/// What is known of a version that serves.
#[derive(Clone, Debug)]
pub struct Serving {
    pub card: Arc<AdapterCard>,
    /// Bytes that its packed weights take.
    pub packed_bytes: u64,
}

impl Catalog {
    pub fn new(base_names: Vec<String>) -> Self {
        Self { base_names, ..Self::default() }
    }

    /// Puts a name as it is now in the place of what was known of it.
    pub fn put(&mut self, named: Named) {
        if let (Some(version), Some(serving)) = (named.row.version, &named.serving) {
            self.refused.remove(named.row.name.as_str());
            self.checked(version, serving);
        }
        self.names.insert(named.row.name.clone(), named);
    }

    /// Writes down that a name was moved.
    pub fn moved(&mut self, row: NameRow, step: Step, serving: Option<Serving>) {
        let mut steps = self.names.remove(row.name.as_str()).map(|named| named.steps).unwrap_or_default();
        steps.push(step);
        self.put(Named { row, steps, serving });
    }

    /// What a name that is known serves from now on.
    pub fn serve(&mut self, name: &AdapterName, serving: Option<Serving>) {
        if let Some(named) = self.names.remove(name.as_str()) {
            self.put(Named { serving, ..named });
        }
    }

    pub fn refuse(&mut self, name: String, refusals: Vec<Refusal>) {
        self.refused.insert(name, Arc::new(refusals));
    }

    pub fn refused(&self) -> impl Iterator<Item = (&str, &Arc<Vec<Refusal>>)> {
        self.refused.iter().map(|(name, refusals)| (name.as_str(), refusals))
    }

    /// Every name that was ever served here, in order.
    pub fn names(&self) -> impl Iterator<Item = &Named> {
        self.names.values()
    }

    pub fn name(&self, name: &str) -> Option<&Named> {
        self.names.get(name)
    }

    pub fn served(&self) -> impl Iterator<Item = (&NameRow, AdapterVersion, &Serving)> {
        self.names.values().filter_map(|named| Some((&named.row, named.row.version?, named.serving.as_ref()?)))
    }

    /// Remembers what a version takes, before a name points at it and after none does.
    pub fn checked(&mut self, version: AdapterVersion, serving: &Serving) {
        self.packed_bytes.insert(version, serving.packed_bytes);
    }

    /// Bytes that a version's packed weights take, if it was checked in this run.
    pub fn packed_bytes(&self, version: AdapterVersion) -> Option<u64> {
        self.packed_bytes.get(&version).copied()
    }

    /// Whether a name points at this version, and whether one of those is pinned.
    pub fn points_at(&self, version: AdapterVersion) -> (bool, bool) {
        let rows = self.names.values().map(|named| &named.row).filter(|row| row.version == Some(version));
        rows.fold((false, false), |(_, pinned), row| (true, pinned || row.pinned))
    }

    /// Every version that a name has or had.
    pub fn versions(&self) -> HashSet<AdapterVersion> {
        let versions = |named: &Named| {
            let had: Vec<_> = named.steps.iter().filter_map(|step| step.version).chain(named.row.version).collect();
            had
        };
        self.names.values().flat_map(versions).collect()
    }

    /// # Errors
    /// [`AdapterError::Refused`] for a name that stands there and cannot serve, else [`AdapterError::Unknown`].
    pub fn find(&self, name: &str) -> Result<(AdapterName, AdapterVersion), AdapterError> {
        if let Some(Named { row, serving: Some(_), .. }) = self.names.get(name)
            && let Some(version) = row.version
        {
            return Ok((row.name.clone(), version));
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
        let Some(named) = self.names.get(name) else {
            return self.find(name).and(Err(self.unknown(name)));
        };
        let name = &named.row.name;
        let had = named.steps.iter().filter_map(|step| step.version).chain(named.row.version);
        let mut fits: Vec<AdapterVersion> = had.filter(|version| version.0.starts_with(prefix)).collect();
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
        let served = self.served().map(|(row, _, _)| row.name.as_str());
        let names = served.chain(self.base_names.iter().map(String::as_str));
        AdapterError::Unknown { name: shown(name), nearest: nearest(name, names).map(str::to_owned) }
    }
}

impl Named {
    /// The versions that the name can go back through, the one in force last. A load or a replacement puts a version on
    /// top; a rollback takes away what it went back over; an unload leaves everything where it is.
    pub fn standing(&self) -> Vec<AdapterVersion> {
        let mut standing: Vec<AdapterVersion> = Vec::new();
        for step in &self.steps {
            let Some(version) = step.version else { continue };
            if step.operation == Operation::Rollback
                && let Some(at) = standing.iter().rposition(|stood| *stood == version)
            {
                standing.truncate(at + 1);
            } else if standing.last() != Some(&version) {
                standing.push(version);
            }
        }
        standing
    }

    /// Where one step back leads: before what is in force, or to what was in force before the unload.
    pub fn one_step_back(&self) -> Option<AdapterVersion> {
        let standing = self.standing();
        match self.row.version {
            Some(_) => standing.len().checked_sub(2).map(|at| standing[at]),
            None => standing.last().copied(),
        }
    }

    /// Where a version came from when the name got it.
    pub fn source_of(&self, version: AdapterVersion) -> Option<String> {
        let brought = |step: &&Step| match step.operation {
            Operation::Load | Operation::Replace | Operation::Settings | Operation::Import => {
                step.version == Some(version)
            }
            Operation::Rollback | Operation::Unload | Operation::Release => false,
        };
        self.steps.iter().rev().find(brought)?.source.clone()
    }

    /// The base on which the name got a version last, where that is written down.
    pub fn base_of(&self, version: AdapterVersion) -> Option<Digest> {
        let brought = |step: &&Step| match step.operation {
            Operation::Load | Operation::Replace | Operation::Rollback | Operation::Import => {
                step.version == Some(version)
            }
            Operation::Unload | Operation::Settings | Operation::Release => false,
        };
        self.steps.iter().rev().find(brought)?.base
    }

    /// The versions of the last `count` steps that moved the name, and the one in force.
    pub fn recent(&self, count: usize) -> impl Iterator<Item = AdapterVersion> {
        let stays = |step: &Step| matches!(step.operation, Operation::Settings | Operation::Release);
        let moves = self.steps.iter().rev().filter(move |step| !stays(step));
        moves.take(count).filter_map(|step| step.version).chain(self.row.version)
    }
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
    use crate::store::ManagedBy;

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

    fn named(steps: &[(Operation, Option<u8>)]) -> Named {
        let version = |byte: u8| AdapterVersion(Digest::of(&[byte]));
        let step = |(operation, byte): &(Operation, Option<u8>)| Step {
            seq: 0,
            at_ms: 0,
            operation: *operation,
            version: byte.map(version),
            managed_by: ManagedBy::Api,
            who: String::new(),
            why: None,
            source: None,
            base: None,
        };
        let row = NameRow {
            name: AdapterName::parse("a").unwrap(),
            version: steps.last().and_then(|(_, byte)| *byte).map(version),
            since_ms: 0,
            managed_by: ManagedBy::Api,
            hold: false,
            pinned: false,
            source: None,
        };
        Named { row, steps: steps.iter().map(step).collect(), serving: None }
    }

    #[test]
    fn a_version_came_from_where_it_was_brought_from_last() {
        use Operation::{Load, Release, Replace, Rollback};
        let mut named = named(&[(Load, Some(1)), (Replace, Some(2)), (Rollback, Some(1)), (Release, Some(1))]);
        for (number, step) in named.steps.iter_mut().enumerate() {
            step.source = Some(number.to_string());
        }
        let from = |byte: u8| named.source_of(AdapterVersion(Digest::of(&[byte])));
        assert_eq!((from(1).as_deref(), from(2).as_deref(), from(3)), (Some("0"), Some("1"), None));
    }

    #[test]
    fn one_step_back_goes_further_back_each_time() {
        use Operation::{Load, Release, Replace, Rollback, Settings, Unload};
        let back = |steps: &[(Operation, Option<u8>)]| named(steps).one_step_back();
        let version = |byte: u8| Some(AdapterVersion(Digest::of(&[byte])));
        let three = [(Load, Some(1)), (Replace, Some(2)), (Replace, Some(3))];
        assert_eq!(back(&three[..1]), None);
        assert_eq!(back(&three), version(2));
        let once = [three.as_slice(), &[(Rollback, Some(2))]].concat();
        assert_eq!(back(&once), version(1), "not forth again");
        let settled = [once.as_slice(), &[(Settings, Some(2)), (Release, Some(2))]].concat();
        assert_eq!(back(&settled), version(1), "a pin and the end of a hold are no steps");
        let twice = [once.as_slice(), &[(Rollback, Some(1))]].concat();
        assert_eq!(back(&twice), None);
        let forth = [twice.as_slice(), &[(Rollback, Some(3))]].concat();
        assert_eq!(back(&forth), version(1), "what was rolled back over can be named again");
        let gone = [three.as_slice(), &[(Unload, None)]].concat();
        assert_eq!(back(&gone), version(3), "an unload is undone");
        let again = [gone.as_slice(), &[(Rollback, Some(3))]].concat();
        assert_eq!(back(&again), version(2));
        assert_eq!(
            named(&settled).recent(2).collect::<HashSet<_>>(),
            [version(2), version(3)].into_iter().flatten().collect()
        );
        assert_eq!(named(&gone).recent(2).collect::<Vec<_>>(), Vec::from_iter(version(3)));
    }
}
