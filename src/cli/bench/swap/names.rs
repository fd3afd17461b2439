//! What names point at while they are changed: when each change was asked for, and when it was answered.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    place::Adapter,
    server::{Server, Times},
};

/// One thing that is done to a name.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Load(&'a Adapter),
    Replace(&'a Adapter),
    RollBack,
    Unload,
}

impl Change<'_> {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Load(_) => "load",
            Self::Replace(_) => "replace",
            Self::RollBack => "roll back",
            Self::Unload => "unload",
        }
    }

    /// Whether no stream can be under way on what it changes.
    pub const fn ends_nothing(self) -> bool {
        matches!(self, Self::Load(_))
    }
}

/// How long a change took.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub whole: Duration,
    /// As the server tells; an unload tells nothing.
    pub stages: Option<Times>,
}

/// Every name with its past.
pub struct Names(Vec<Mutex<Vec<Step>>>);

struct Step {
    asked: Instant,
    /// `None`: not yet.
    answered: Option<Instant>,
    /// `None` for an unload, and for one whose version is not known yet.
    version: Option<String>,
    unload: bool,
}

impl Names {
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Mutex::default()).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn name(&self, index: usize) -> String {
        format!("swapped-{index}")
    }

    fn steps(&self, index: usize) -> MutexGuard<'_, Vec<Step>> {
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a name, and remembers when.
    pub fn change(&self, server: &Server, index: usize, change: Change<'_>) -> Result<Timed, String> {
        let name = self.name(index);
        let asked = Instant::now();
        let unload = matches!(change, Change::Unload);
        self.steps(index).push(Step { asked, answered: None, version: None, unload });
        let changed = match change {
            Change::Load(adapter) => server.load(&name, adapter, false).map(Some),
            Change::Replace(adapter) => server.load(&name, adapter, true).map(Some),
            Change::RollBack => server.roll_back(&name).map(Some),
            Change::Unload => server.unload(&name).map(|()| None),
        }?;
        let answered = Instant::now();
        if let Some(step) = self.steps(index).last_mut() {
            step.answered = Some(answered);
            step.version = changed.as_ref().map(|changed| changed.version.clone());
        }
        Ok(Timed { whole: answered - asked, stages: changed.map(|changed| changed.times) })
    }

    /// Whether a request that was sent at `sent` and whose fate was known at `known` may have found this version, or, if it
    /// is `None`, nothing under the name: what the name had when the request was sent, and what it was given since.
    pub fn may_find(&self, index: usize, sent: Instant, known: Instant, version: Option<&str>) -> bool {
        let steps = self.steps(index);
        let past = steps.iter().rposition(|step| step.answered.is_some_and(|answered| answered < sent));
        let possible = steps.iter().skip(past.unwrap_or(0)).filter(|step| step.asked <= known);
        // Before its first change a name is not there.
        if past.is_none() && version.is_none() {
            return true;
        }
        possible.into_iter().any(|step| match (version, step.unload) {
            (None, unload) => unload,
            (Some(_), true) => false,
            // Its answer is not there yet, so any version may be its own; whose tokens they are is looked at anyway.
            (Some(found), false) => step.version.as_deref().is_none_or(|version| version == found),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, start: Instant) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_request_may_find_what_the_name_had_and_what_it_was_given_meanwhile() {
        let (names, start) = (Names::new(1), Instant::now());
        let step = |asked, answered: Option<u64>, version: Option<&str>| Step {
            asked: at(asked, start),
            answered: answered.map(|ms| at(ms, start)),
            version: version.map(str::to_owned),
            unload: version.is_none(),
        };
        *names.steps(0) = vec![
            step(10, Some(20), Some("one")),
            step(30, Some(40), Some("two")),
            step(50, Some(60), None),
            step(70, None, Some("three")),
        ];
        let found = |sent, known, version| names.may_find(0, at(sent, start), at(known, start), version);
        assert!(found(0, 5, None), "before its first load");
        assert!(found(25, 28, Some("one")) && !found(25, 28, Some("two")) && !found(25, 28, None));
        assert!(found(25, 35, Some("two")) && found(35, 45, Some("one")), "while it is replaced, either");
        assert!(!found(41, 45, Some("one")), "once that is answered, never again");
        assert!(found(45, 55, None) && found(55, 58, Some("two")) && !found(61, 65, Some("two")));
        assert!(found(61, 65, None) && found(61, 75, Some("three")));
    }
}
