//! The clients: they stream without pause, and each answer is held against what its version answers alone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{names::Names, report::Report, server::Server};

/// What is asked, and what each kind of adapter answers to it alone.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// By kind.
    pub answers: Vec<Vec<String>>,
}

/// How a request ended, where nothing went wrong.
pub enum Asked {
    Answered(Answer),
    /// 404: nothing is served under the name.
    Absent,
}

/// A whole answer.
pub struct Answer {
    /// The first digits of the version that says it answered.
    pub version: String,
    pub tokens: Vec<String>,
    pub cached_tokens: u64,
    /// From sending until the answer began.
    pub begun: Duration,
    /// From sending.
    pub first_token: Option<Duration>,
}

/// Everything that clients do.
pub struct Streams<'a> {
    prompts: &'a [Prompt],
    names: &'a Names,
    /// Of versions, by their first digits.
    kinds: &'a HashMap<String, usize>,
    board: Mutex<Board>,
    moved: Condvar,
    next: AtomicU64,
    over: AtomicBool,
}

#[derive(Default)]
struct Board {
    /// Streams between their first and their last token.
    live: HashMap<u64, Live>,
    answered: usize,
    absent: usize,
    with_cached_prefix: usize,
    mixed: usize,
    stale: usize,
    faults: BTreeSet<String>,
    failed: usize,
}

struct Live {
    name: usize,
    tokens: usize,
}

/// Examples of faults that are kept.
const EXAMPLES: usize = 5;

impl<'a> Streams<'a> {
    pub fn new(prompts: &'a [Prompt], names: &'a Names, kinds: &'a HashMap<String, usize>) -> Self {
        Self {
            prompts,
            names,
            kinds,
            board: Mutex::default(),
            moved: Condvar::new(),
            next: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One client: a request as soon as the one before has ended, to each name in turn.
    pub fn ask_without_pause(&self, client: usize, server: &Server, tokens: usize) {
        for turn in client.. {
            if self.over.load(Ordering::Acquire) {
                return;
            }
            let (name, prompt) =
                (turn % self.names.len(), &self.prompts[(turn / self.names.len()) % self.prompts.len()]);
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let sent = Instant::now();
            let asked = server.stream(&self.names.name(name), &prompt.tokens, tokens, |_| {
                let mut board = self.board();
                board.live.entry(id).or_insert(Live { name, tokens: 0 }).tokens += 1;
                self.moved.notify_all();
            });
            let known = Instant::now();
            let mut board = self.board();
            board.live.remove(&id);
            self.moved.notify_all();
            match asked {
                Err(fault) => board.fail(fault),
                Ok(Asked::Absent) => {
                    board.absent += 1;
                    if !self.names.may_find(name, sent, known, None) {
                        board.fail(format!("{}: 404, and it was served all the time", self.names.name(name)));
                    }
                }
                Ok(Asked::Answered(answer)) => {
                    board.answered += 1;
                    board.with_cached_prefix += usize::from(answer.cached_tokens > 0);
                    if !self.names.may_find(name, sent, sent + answer.begun, Some(&answer.version)) {
                        board.stale += 1;
                        board.note(format!(
                            "{}: version {} answers out of turn",
                            self.names.name(name),
                            answer.version
                        ));
                    }
                    if let Err(fault) = self.judge(prompt, &answer) {
                        board.mixed += 1;
                        board.note(format!("{}: {fault}", self.names.name(name)));
                    }
                }
            }
        }
    }

    /// An answer is its version's own, from the first token to the last.
    fn judge(&self, prompt: &Prompt, answer: &Answer) -> Result<(), String> {
        let Answer { version, tokens, .. } = answer;
        let Some(kind) = self.kinds.get(version) else {
            return Err(format!("version {version} was never loaded under it"));
        };
        let Some(at) = parting(tokens, &prompt.answers[*kind]) else { return Ok(()) };
        let other = prompt.answers.iter().any(|other| other.get(at) == tokens.get(at));
        let whose = if other { ", where it is another version's" } else { "" };
        Err(format!("the answer of version {version} is not its own from token {at}{whose}"))
    }

    /// Waits until a stream of the name has begun and has more than half before it; gives all that live then.
    pub fn in_the_middle_of(&self, name: usize, patience: Duration) -> Result<Vec<u64>, String> {
        let half = self.prompts[0].answers[0].len() / 2;
        let of_name = |board: &Board| -> Vec<u64> {
            board.live.iter().filter(|(_, live)| live.name == name).map(|(id, _)| *id).collect()
        };
        let young = |board: &Board| board.live.values().any(|live| live.name == name && live.tokens < half);
        let waited = self
            .moved
            .wait_timeout_while(self.board(), patience, |board| !young(board))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() {
            return Err(format!("no stream of {} has begun within {} s", self.names.name(name), patience.as_secs()));
        }
        Ok(of_name(&waited.0))
    }

    /// Requests that were answered 404 in their turn.
    pub fn absent(&self) -> usize {
        self.board().absent
    }

    /// Waits until somebody else was.
    pub fn more_absent_than(&self, count: usize, patience: Duration) -> Result<(), String> {
        let waited = self
            .moved
            .wait_timeout_while(self.board(), patience, |board| board.absent <= count)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() { Err("nobody has asked for an unloaded name".to_owned()) } else { Ok(()) }
    }

    /// Whether one of these streams still waits for its last token.
    pub fn any_lives(&self, streams: &[u64]) -> bool {
        let board = self.board();
        let whole = self.prompts[0].answers[0].len();
        streams.iter().any(|id| board.live.get(id).is_some_and(|live| live.tokens < whole))
    }

    /// Nobody asks again.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub fn report(&self, report: &mut Report) {
        let board = self.board();
        report.answered = board.answered;
        report.absent = board.absent;
        report.failed = board.failed;
        report.mixed = board.mixed;
        report.stale = board.stale;
        report.with_cached_prefix = board.with_cached_prefix;
        report.faults = board.faults.iter().cloned().collect();
    }
}

impl Board {
    fn note(&mut self, fault: String) {
        if self.faults.len() < EXAMPLES {
            self.faults.insert(fault);
        }
    }

    fn fail(&mut self, fault: String) {
        self.failed += 1;
        self.note(fault);
    }
}

/// The first place where two answers differ.
fn parting(one: &[String], other: &[String]) -> Option<usize> {
    let differs = one.iter().zip(other).position(|(one, other)| one != other);
    differs.or((one.len() != other.len()).then(|| one.len().min(other.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_two_versions_is_found_and_so_is_one_of_a_stranger() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let prompts = [Prompt { tokens: vec![1], answers: vec![words("a b c d"), words("a x y z")] }];
        let kinds = [("one".to_owned(), 0), ("two".to_owned(), 1)].into();
        let names = Names::new(1);
        let streams = Streams::new(&prompts, &names, &kinds);
        let judge = |version: &str, text: &str| {
            let answer = Answer {
                version: version.to_owned(),
                tokens: words(text),
                cached_tokens: 0,
                begun: Duration::ZERO,
                first_token: None,
            };
            streams.judge(&prompts[0], &answer).err().unwrap_or_default()
        };
        assert_eq!((judge("one", "a b c d"), judge("two", "a x y z")), (String::new(), String::new()));
        assert!(judge("one", "a b y z").contains("from token 2, where it is another version's"));
        assert!(judge("two", "a b c d").contains("from token 1, where"));
        assert!(judge("one", "a b c q").ends_with("from token 3"));
        assert!(judge("one", "a b c").contains("from token 3"));
        assert!(judge("three", "a b c d").contains("never loaded"));
    }
}
