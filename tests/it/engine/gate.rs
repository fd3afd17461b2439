//! An engine whose every step waits for the test, and readers of its events: no sleeps, no races.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use tunegate::{
    config::EngineConfig,
    engine::{
        self, CancelFlag, EngineHandle, Event, EventReceiver, Generate, Job, KvSalt, Priority, SubmitError, Work,
        event_channel,
    },
    metrics::Metrics,
    model::{Batch, KvShape, LanguageModel, LoraAdapter, ModelShape, RowAnswer, SequenceRows, StepError, StepOutput},
    terms::{AdapterVersion, Sampling, TokenScore},
};

/// What a step is told to do.
pub enum Go {
    Run,
    Fail,
    Panic,
    /// The answer to the ask of this place is not finite.
    NotFinite(usize),
    /// The last answer is missing.
    Short,
}

/// What a step was about to compute.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Vec<SequenceRows>,
    pub adapters: Vec<(AdapterVersion, Vec<u32>)>,
}

impl Seen {
    /// Rows of the sequence whose first prompt token, or latest token, this is.
    pub fn rows_from(&self, token: u32) -> usize {
        let of = |rows: &&SequenceRows| self.tokens[rows.first_row as usize] == token;
        self.sequences.iter().filter(of).map(|rows| rows.rows as usize).sum()
    }
}

struct Gate {
    inner: Box<dyn LanguageModel>,
    at: Sender<Seen>,
    go: Receiver<Go>,
}

impl LanguageModel for Gate {
    fn shape(&self) -> &ModelShape {
        self.inner.shape()
    }

    fn kv_shape(&self) -> KvShape {
        self.inner.kv_shape()
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        let seen = Seen {
            tokens: batch.tokens.clone(),
            positions: batch.positions.clone(),
            sequences: batch.sequences.clone(),
            adapters: batch.adapters.iter().map(|a| (a.weights.version(), a.rows.clone())).collect(),
        };
        // Once the test has let go of its end, steps run by themselves.
        let _ = self.at.send(seen);
        match self.go.recv().unwrap_or(Go::Run) {
            Go::Run => self.inner.forward(batch, out),
            Go::Fail => Err(StepError::Device("unplugged".to_owned())),
            Go::Panic => panic!("the decoder tripped"),
            Go::NotFinite(ask) => {
                self.inner.forward(batch, out)?;
                out.answers[ask] = RowAnswer::NotFinite;
                Ok(())
            }
            Go::Short => {
                self.inner.forward(batch, out)?;
                out.answers.pop();
                Ok(())
            }
        }
    }
}

/// A running engine under test.
pub struct TestEngine {
    pub handle: EngineHandle,
    pub metrics: Arc<Metrics>,
    thread: JoinHandle<()>,
    steps: Option<(Receiver<Seen>, Sender<Go>)>,
}

impl TestEngine {
    /// Every step waits for [`TestEngine::go`].
    pub fn stepped(model: impl LanguageModel + 'static, config: EngineConfig) -> Self {
        let (at, steps) = mpsc::channel();
        let (permits, go) = mpsc::channel();
        let gate = Gate { inner: Box::new(model), at, go };
        Self { steps: Some((steps, permits)), ..Self::free(gate, config) }
    }

    /// Steps run by themselves.
    pub fn free(model: impl LanguageModel + 'static, config: EngineConfig) -> Self {
        let metrics = Arc::new(Metrics::new());
        let (handle, thread) = engine::spawn(Box::new(model), config, Arc::clone(&metrics));
        Self { handle, metrics, thread, steps: None }
    }

    /// Waits until the engine is about to compute a step, and shows it. It stays there until `go`.
    pub fn at_step(&self) -> Seen {
        let (steps, _) = self.steps.as_ref().expect("a stepped engine");
        steps.recv().expect("the engine computes another step")
    }

    pub fn go(&self, go: Go) {
        let (_, permits) = self.steps.as_ref().expect("a stepped engine");
        permits.send(go).expect("the engine waits at a step");
    }

    /// Lets this step run and waits for the next.
    pub fn next_step(&self) -> Seen {
        self.go(Go::Run);
        self.at_step()
    }

    /// Lets one step run if the engine has come to one, or has work and will.
    pub fn run_one(&self) {
        let (steps, _) = self.steps.as_ref().expect("a stepped engine");
        loop {
            if steps.try_recv().is_ok() {
                return self.go(Go::Run);
            }
            let load = self.handle.load();
            if load.running + load.waiting == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Asks one question after the other, lets `pause(i)` steps run after the i-th, and reads all answers. From the
    /// last question on the engine runs by itself.
    pub fn ask_one_by_one(&mut self, asks: &[Ask], pause: impl Fn(usize) -> usize) -> Vec<Answer> {
        let ask = |(i, ask): (usize, &Ask)| {
            let reader = self.ask(ask);
            (0..pause(i)).for_each(|_| self.run_one());
            reader
        };
        let readers: Vec<_> = asks.iter().enumerate().map(ask).collect();
        self.let_go();
        readers.into_iter().map(Reader::answer).collect()
    }

    /// From now on steps run by themselves.
    pub fn let_go(&mut self) {
        self.steps = None;
    }

    pub fn ask(&self, ask: &Ask) -> Reader {
        self.try_ask(ask).expect("the engine takes the job")
    }

    pub fn try_ask(&self, ask: &Ask) -> Result<Reader, SubmitError> {
        let (job, reader) = ask.job();
        self.handle.submit(job).map(|()| reader)
    }

    /// Lets all work run to its end, and the thread with it; checks that nothing is held.
    pub fn ends_whole(mut self) {
        self.let_go();
        let Self { handle, metrics, thread, .. } = self;
        drop(handle);
        // An idle engine that misses a block panics in a test build.
        thread.join().expect("the engine thread ends in peace");
        assert_eq!((metrics.running.get(), metrics.waiting.get(), metrics.kv_blocks_used.get()), (0, 0, 0));
    }

    /// Waits until the thread has ended of its own accord; the handle remains.
    pub fn join(self) -> EngineHandle {
        let Self { handle, thread, steps, .. } = self;
        drop(steps);
        thread.join().expect("the engine thread ends in peace");
        handle
    }
}

/// A job in the making.
#[derive(Clone)]
pub struct Ask {
    pub tokens: Vec<u32>,
    pub work: Work,
    pub adapter: Option<Arc<LoraAdapter>>,
    pub tenant: u64,
    pub priority: Priority,
}

impl Ask {
    /// `max_tokens` tokens, the most likely ones.
    pub fn greedy(tokens: impl Into<Vec<u32>>, max_tokens: usize) -> Self {
        let generate = Generate {
            sampling: Sampling { temperature: 0.0, ..Default::default() },
            max_tokens,
            min_tokens: 0,
            stop_tokens: [].into(),
            logit_bias: [].into(),
            top: 0,
            seed: 0,
            choice: 0,
        };
        Self::work(tokens, Work::Generate(generate))
    }

    pub fn work(tokens: impl Into<Vec<u32>>, work: Work) -> Self {
        Self { tokens: tokens.into(), work, adapter: None, tenant: 0, priority: Priority::Normal }
    }

    pub fn adapter(self, adapter: &Arc<LoraAdapter>) -> Self {
        Self { adapter: Some(Arc::clone(adapter)), ..self }
    }

    pub fn tenant(self, tenant: u64) -> Self {
        Self { tenant, ..self }
    }

    pub fn background(self) -> Self {
        Self { priority: Priority::Background, ..self }
    }

    pub fn generate(mut self, change: impl FnOnce(&mut Generate)) -> Self {
        if let Work::Generate(generate) = &mut self.work {
            change(generate);
        }
        self
    }

    pub fn job(&self) -> (Job, Reader) {
        let (events, receiver) = event_channel(&self.work, self.tokens.len());
        let cancel = CancelFlag::default();
        let job = Job {
            work: self.work.clone(),
            tokens: self.tokens.as_slice().into(),
            adapter: self.adapter.clone(),
            salt: KvSalt::default(),
            tenant: self.tenant,
            priority: self.priority,
            cancel: cancel.clone(),
            events,
        };
        (job, Reader { receiver, cancel })
    }
}

/// The reading end of one job.
pub struct Reader {
    pub receiver: EventReceiver,
    pub cancel: CancelFlag,
}

/// Everything that one job reported.
#[derive(Debug)]
pub struct Answer {
    pub started: bool,
    /// Of the prompt; from the start.
    pub cached_tokens: usize,
    pub scores: Vec<TokenScore>,
    /// `None` if the channel closed without a last event.
    pub last: Option<Event>,
}

impl Answer {
    pub fn tokens(&self) -> Vec<u32> {
        self.scores.iter().map(|score| score.token).collect()
    }
}

impl Reader {
    /// Waits for the next event; `None` once the channel is closed.
    pub fn next(&mut self) -> Option<Event> {
        self.receiver.blocking_recv()
    }

    /// Reads to the end, and checks the order of events.
    pub fn answer(mut self) -> Answer {
        let mut answer = Answer { started: false, cached_tokens: 0, scores: Vec::new(), last: None };
        while let Some(event) = self.next() {
            assert!(answer.last.is_none(), "{event:?} came after the last event");
            match event {
                Event::Started { cached_tokens, .. } => {
                    assert!(!answer.started && answer.scores.is_empty(), "a job starts once, and first");
                    (answer.started, answer.cached_tokens) = (true, cached_tokens);
                }
                Event::Token { score, .. } => {
                    assert!(answer.started, "a token came before the start");
                    answer.scores.push(score);
                }
                Event::Finished(_) | Event::Hidden(_) | Event::Failed(_) => answer.last = Some(event),
            }
        }
        answer
    }
}
