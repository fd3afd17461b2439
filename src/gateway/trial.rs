//! Runs a candidate's weights before any name points at them: fixed texts and the adapter's own golden answers, read by the
//! base and by the candidate, token by token. Log-probabilities are compared, never tokens.

mod judge;
mod texts;

use std::sync::Arc;

pub use judge::{AnswerFigures, Figures, GOLDEN_TOLERANCE, MAX_MEAN_GAP, Verdict};
use tokio::sync::{OnceCell, Semaphore};

use self::{judge::Read, texts::Sequence};
use crate::{
    adapters::AdapterLease,
    engine::{
        CancelFlag, EngineFault, EngineHandle, Event, EventReceiver, Job, KvSalt, Priority, SubmitError, Work,
        event_channel,
    },
    metrics::Metrics,
    terms::Digest,
    text::Text,
};

/// Tries candidates on one base, one at a time.
pub struct Trial {
    engine: EngineHandle,
    text: Arc<Text>,
    metrics: Arc<Metrics>,
    suite: Digest,
    turn: Semaphore,
    /// The base's log-probabilities of the fixed texts.
    base: OnceCell<Vec<Vec<f32>>>,
}

/// Why a candidate could not be tried. It says nothing about the candidate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrialError {
    #[error("{0}")]
    Failed(String),
    #[error("{reason}")]
    Busy { reason: String, retry_after_ms: u64 },
}

/// Texts that are in the engine at the same time.
const AT_ONCE: usize = 4;

impl Trial {
    pub fn new(engine: EngineHandle, text: Arc<Text>, metrics: Arc<Metrics>) -> Self {
        let template = text.template().map_or([0; 32], |template| *template.digest.as_bytes());
        let hasher = judge::rules().part("tokenizer", text.digest().as_bytes()).part("template", &template);
        let suite = texts::hashed(hasher).finish();
        Self { engine, text, metrics, suite, turn: Semaphore::new(1), base: OnceCell::new() }
    }

    /// What candidates are judged by: texts, bounds, tokenizer and template. An adapter's golden answers are part of its
    /// version.
    pub fn suite(&self) -> Digest {
        self.suite
    }

    /// Runs the candidate and says what was found.
    ///
    /// # Errors
    /// [`TrialError`] if it could not be run.
    pub async fn run(&self, candidate: &AdapterLease) -> Result<Verdict, TrialError> {
        let _turn = self.turn.acquire().await.map_err(|error| TrialError::Failed(error.to_string()))?;
        let verdict = self.judged(candidate).await?;
        let outcome = verdict.failed.as_ref().map_or("passed", |(test, _)| test.as_str());
        self.metrics.adapter_trials.with_label_values(&[outcome]).inc();
        Ok(verdict)
    }

    async fn judged(&self, candidate: &AdapterLease) -> Result<Verdict, TrialError> {
        let limit = self.engine.limits().max_model_len;
        let (texts, golden) = {
            let (text, card) = (Arc::clone(&self.text), Arc::clone(&candidate.card));
            let read = move || {
                let template = card.template.clone().or_else(|| text.template().cloned());
                (texts::fixed(&text, limit), texts::golden(&text, template.as_ref(), &card.golden, limit))
            };
            tokio::task::spawn_blocking(read).await.map_err(|error| TrialError::Failed(error.to_string()))?
        };
        let texts = texts.map_err(|error| TrialError::Failed(error.to_string()))?;
        let golden = match golden {
            Ok(golden) => golden,
            Err(reason) => return Ok(Verdict::unreadable(reason)),
        };
        let base = self.base.get_or_try_init(|| self.of_base(&texts)).await?;
        let mut read = Read { base: base.clone(), ..Read::default() };
        let Some(scores) = self.scores(&texts, Some(candidate)).await? else { return Ok(Verdict::not_finite()) };
        read.candidate = scores;
        read.golden_base = self.of_base(&golden).await?;
        let Some(scores) = self.scores(&golden, Some(candidate)).await? else { return Ok(Verdict::not_finite()) };
        read.golden_candidate = scores;
        Ok(judge::judge(&read, &candidate.card.golden))
    }

    async fn of_base(&self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, TrialError> {
        let scores = self.scores(sequences, None).await?;
        scores.ok_or_else(|| TrialError::Failed("the base's own scores are not finite".to_owned()))
    }

    /// The log-probabilities of what is judged of each sequence; `None` if any is not finite.
    async fn scores(
        &self,
        sequences: &[Sequence],
        adapter: Option<&AdapterLease>,
    ) -> Result<Option<Vec<Vec<f32>>>, TrialError> {
        let mut all = Vec::with_capacity(sequences.len());
        for some in sequences.chunks(AT_ONCE) {
            let receivers = some.iter().map(|one| self.submit(one, adapter)).collect::<Result<Vec<_>, _>>()?;
            for (mut receiver, sequence) in receivers.into_iter().zip(some) {
                match collect(&mut receiver).await? {
                    Some(scores) => all.push(scores.get(sequence.judged_from - 1..).unwrap_or_default().to_vec()),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(all))
    }

    fn submit(&self, sequence: &Sequence, adapter: Option<&AdapterLease>) -> Result<EventReceiver, TrialError> {
        let work = Work::Score { top: 0 };
        let (events, receiver) = event_channel(&work, sequence.tokens.len());
        let own = Digest::of(b"trial");
        let job = Job {
            work,
            tokens: Arc::clone(&sequence.tokens),
            adapter: adapter.map(|lease| Arc::clone(&lease.weights)),
            // A cache and a lane of its own, apart from every client's.
            salt: KvSalt(*own.as_bytes()),
            tenant: u64::from_le_bytes(own.as_bytes()[..8].try_into().unwrap_or_default()),
            priority: Priority::Normal,
            cancel: CancelFlag::default(),
            events,
        };
        self.engine.submit(job).map_err(|error| match error {
            SubmitError::QueueFull { retry_after_ms, .. } => {
                TrialError::Busy { reason: error.to_string(), retry_after_ms }
            }
            SubmitError::EmptyPrompt
            | SubmitError::TooLong { .. }
            | SubmitError::UnknownToken { .. }
            | SubmitError::Stopped => TrialError::Failed(error.to_string()),
        })?;
        Ok(receiver)
    }
}

/// Every score of one sequence; `None` if one is not finite.
async fn collect(receiver: &mut EventReceiver) -> Result<Option<Vec<f32>>, TrialError> {
    let mut scores = Vec::new();
    loop {
        match receiver.recv().await {
            Some(Event::Token { score, .. }) => scores.push(score.logprob),
            Some(Event::Started { .. }) => {}
            Some(Event::Finished(_)) => return Ok(scores.iter().all(|score| score.is_finite()).then_some(scores)),
            Some(Event::Failed(EngineFault::NotFinite)) => return Ok(None),
            Some(Event::Failed(fault)) => return Err(TrialError::Failed(fault.to_string())),
            Some(Event::Hidden(_)) | None => return Err(TrialError::Failed(EngineFault::Stopped.to_string())),
        }
    }
}
