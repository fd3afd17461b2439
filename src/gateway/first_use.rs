//! Names that nobody has published yet are looked for in the sources when they are first asked for, where that is switched
//! on. However many ask, one looks; what is not there is remembered for a while, and how many looks in vain there may be is
//! bounded, so that unknown names cannot be used to keep a source busy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio::sync::watch;

use super::publish::{Candidate, Expected, Load, Origin, PublishError, Publisher};
use crate::{
    adapters::{
        AdapterError, ManagedBy, Refusal,
        source::{SourceError, Sources},
    },
    terms::AdapterName,
};

/// Looks for names in sources.
pub struct FirstUse {
    publisher: Publisher,
    sources: Arc<Sources>,
    memory: Mutex<Memory>,
}

/// How a look came out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The name is served now.
    There,
    /// No source has it, or it may not come this way.
    Nowhere,
    Refused(Arc<Vec<Refusal>>),
    Unavailable(String),
}

impl FirstUse {
    pub fn new(publisher: Publisher, sources: Arc<Sources>) -> Arc<Self> {
        Arc::new(Self { publisher, sources, memory: Mutex::new(Memory::new(Instant::now())) })
    }

    /// True once the name is served; false if no source has it. Goes on if the caller leaves.
    ///
    /// # Errors
    /// [`AdapterError::Refused`] for what was found and cannot serve; [`AdapterError::Busy`] if it is to be asked for later.
    pub async fn find(self: &Arc<Self>, name: &AdapterName) -> Result<bool, AdapterError> {
        let busy = |reason: String, wait: Duration| AdapterError::Busy {
            name: name.clone(),
            reason,
            retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
        };
        let mut looking = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            match memory.ask(name, Instant::now()) {
                Turn::Known(outcome, left) => return answer(name, outcome, |reason| busy(reason, left)),
                Turn::Full(wait) => {
                    return Err(busy("too many names are being looked for".to_owned(), wait));
                }
                Turn::UnderWay(looking) => looking,
                Turn::Look(told) => {
                    let looking = told.subscribe();
                    let (this, name) = (Arc::clone(self), name.clone());
                    tokio::spawn(async move {
                        let outcome = this.look(&name).await;
                        let mut memory = this.memory.lock().unwrap_or_else(PoisonError::into_inner);
                        memory.ended(&name, &outcome, Instant::now());
                        told.send_replace(Some(outcome));
                    });
                    looking
                }
            }
        };
        let outcome = match looking.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Nowhere),
            Err(_) => Outcome::Unavailable("the look broke off".to_owned()),
        };
        answer(name, outcome, |reason| busy(reason, FIRST_PAUSE))
    }

    /// As [`FirstUse::find`], within a time. The look goes on without whoever has waited enough.
    ///
    /// # Errors
    /// [`AdapterError::NotYet`] after that time, else as [`FirstUse::find`].
    pub async fn find_within(self: &Arc<Self>, name: &AdapterName, wait: Duration) -> Result<bool, AdapterError> {
        // A timer has a grain; whoever does not wait at all is not kept for that long.
        let found = match wait.is_zero() {
            true => self.find(name).now_or_never(),
            false => tokio::time::timeout(wait, self.find(name)).await.ok(),
        };
        found.unwrap_or_else(|| {
            Err(AdapterError::NotYet {
                name: name.clone(),
                waited_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                retry_after_ms: RETRY_AFTER_MS,
            })
        })
    }

    async fn look(&self, name: &AdapterName) -> Outcome {
        let found = async {
            let place = self.sources.find(name).await?;
            self.sources.open_place(&place).await
        };
        let delivery = match found.await {
            Ok(delivery) => delivery,
            Err(SourceError::NotThere(_) | SourceError::Unnamed(_) | SourceError::Path(_)) => return Outcome::Nowhere,
            Err(SourceError::Refused(refusals)) => return Outcome::Refused(Arc::new(refusals)),
            Err(error) => return Outcome::Unavailable(error.to_string()),
        };
        let load = Load {
            name: name.clone(),
            candidate: Candidate::Files(delivery.files),
            replace: false,
            expected: Expected::Anything,
            pinned: None,
            warm: true,
            origin: Origin {
                managed_by: ManagedBy::FirstUse,
                who: ManagedBy::FirstUse.as_str().to_owned(),
                why: None,
                source: Some(delivery.origin),
            },
        };
        match self.publisher.load(load).await {
            // Somebody else was quicker.
            Ok(_) | Err(PublishError::AlreadyLoaded { .. }) => Outcome::There,
            // It was taken away by somebody who goes before, and stays away.
            Err(PublishError::Managed { .. } | PublishError::Held { .. } | PublishError::BaseName { .. }) => {
                Outcome::Nowhere
            }
            Err(PublishError::Adapter(AdapterError::Refused { refusals, .. })) => Outcome::Refused(refusals),
            Err(error) => {
                tracing::warn!(adapter = %name, %error, "an adapter that was asked for could not be published");
                Outcome::Unavailable("it could not be published".to_owned())
            }
        }
    }
}

fn answer(
    name: &AdapterName,
    outcome: Outcome,
    busy: impl FnOnce(String) -> AdapterError,
) -> Result<bool, AdapterError> {
    match outcome {
        Outcome::There => Ok(true),
        Outcome::Nowhere => Ok(false),
        Outcome::Refused(refusals) => Err(AdapterError::Refused { name: name.to_string(), refusals }),
        Outcome::Unavailable(reason) => Err(busy(reason)),
    }
}

/// When to come back to a name that is still being looked for.
const RETRY_AFTER_MS: u64 = 1000;
/// Looks at the same time.
const AT_ONCE: usize = 16;
/// Looks in vain that may follow each other at once, and how long it takes until one more may.
const IN_VAIN: u32 = 32;
const ONE_MORE: Duration = Duration::from_secs(1);
/// How long what was not found is not looked for again, at first and at most; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Names that are remembered as not found.
const REMEMBERED: usize = 10_000;

/// What is under way, and what was looked for in vain.
struct Memory {
    under_way: HashMap<AdapterName, watch::Receiver<Option<Outcome>>>,
    in_vain: HashMap<AdapterName, InVain>,
    /// Looks in vain that are still allowed, counted at `counted`.
    allowed: u32,
    counted: Instant,
}

struct InVain {
    outcome: Outcome,
    pause: Duration,
    until: Instant,
}

enum Turn {
    Known(Outcome, Duration),
    UnderWay(watch::Receiver<Option<Outcome>>),
    Look(watch::Sender<Option<Outcome>>),
    Full(Duration),
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self { under_way: HashMap::new(), in_vain: HashMap::new(), allowed: IN_VAIN, counted: now }
    }

    fn ask(&mut self, name: &AdapterName, now: Instant) -> Turn {
        if let Some(known) = self.in_vain.get(name)
            && known.until > now
        {
            return Turn::Known(known.outcome.clone(), known.until - now);
        }
        if let Some(looking) = self.under_way.get(name) {
            return Turn::UnderWay(looking.clone());
        }
        self.count(now);
        // Each look that is under way may turn out to be in vain.
        let pending = u32::try_from(self.under_way.len()).unwrap_or(u32::MAX);
        if self.under_way.len() >= AT_ONCE || self.allowed <= pending {
            return Turn::Full(ONE_MORE);
        }
        let told = watch::Sender::new(None);
        self.under_way.insert(name.clone(), told.subscribe());
        Turn::Look(told)
    }

    fn ended(&mut self, name: &AdapterName, outcome: &Outcome, now: Instant) {
        self.under_way.remove(name);
        if *outcome == Outcome::There {
            self.in_vain.remove(name);
            return;
        }
        self.count(now);
        self.allowed = self.allowed.saturating_sub(1);
        let last = self.in_vain.get(name).map(|last| last.pause.saturating_mul(2));
        let pause = last.unwrap_or(FIRST_PAUSE).min(LONGEST_PAUSE);
        if self.in_vain.len() >= REMEMBERED {
            self.in_vain.retain(|_, known| known.until > now);
            if self.in_vain.len() >= REMEMBERED
                && let Some(soonest) =
                    self.in_vain.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| name.clone())
            {
                self.in_vain.remove(&soonest);
            }
        }
        self.in_vain.insert(name.clone(), InVain { outcome: outcome.clone(), pause, until: now + pause });
    }

    fn count(&mut self, now: Instant) {
        let more = now.duration_since(self.counted).as_secs() / ONE_MORE.as_secs();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.allowed = self.allowed.saturating_add(more).min(IN_VAIN);
            self.counted = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> AdapterName {
        AdapterName::parse(&format!("a{number}")).unwrap()
    }

    fn looks(memory: &mut Memory, number: usize, now: Instant) -> bool {
        matches!(memory.ask(&name(number), now), Turn::Look(_))
    }

    #[test]
    fn a_name_that_is_nowhere_is_looked_for_less_and_less_often() {
        let mut now = Instant::now();
        let mut memory = Memory::new(now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert!(looks(&mut memory, 1, now));
            memory.ended(&name(1), &Outcome::Nowhere, now);
            let Turn::Known(Outcome::Nowhere, left) = memory.ask(&name(1), now) else { panic!("it is known") };
            pauses.push(left.as_secs());
            now += left;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(looks(&mut memory, 1, now));
        memory.ended(&name(1), &Outcome::There, now);
        assert!(looks(&mut memory, 1, now), "once found nothing is held against it");
    }

    #[test]
    fn looks_in_vain_are_bounded_over_all_names() {
        let mut now = Instant::now();
        let mut memory = Memory::new(now);
        let mut looked = 0;
        for number in 0..1000 {
            if looks(&mut memory, number, now) {
                looked += 1;
                memory.ended(&name(number), &Outcome::Nowhere, now);
            }
        }
        assert_eq!(looked, IN_VAIN);
        assert!(matches!(memory.ask(&name(2000), now), Turn::Full(_)));
        now += 3 * ONE_MORE;
        let more = (3000..3100).filter(|number| {
            let look = looks(&mut memory, *number, now);
            if look {
                memory.ended(&name(*number), &Outcome::Nowhere, now);
            }
            look
        });
        assert_eq!(more.count(), 3);
    }

    #[test]
    fn those_who_ask_for_one_name_share_one_look() {
        let now = Instant::now();
        let mut memory = Memory::new(now);
        assert!(looks(&mut memory, 1, now));
        for _ in 0..100 {
            assert!(matches!(memory.ask(&name(1), now), Turn::UnderWay(_)));
        }
        for number in 2..=AT_ONCE {
            assert!(looks(&mut memory, number, now));
        }
        assert!(matches!(memory.ask(&name(AT_ONCE + 1), now), Turn::Full(_)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::new(Instant::now());
        for number in 0..REMEMBERED + 10 {
            memory.ended(&name(number), &Outcome::Nowhere, Instant::now());
        }
        assert_eq!(memory.in_vain.len(), REMEMBERED);
    }
}
