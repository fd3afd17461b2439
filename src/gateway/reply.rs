//! An answer under way: engine events become text, every ending is recorded, a finish waits for its receipt.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    AskError, Gateway, ReplyError, ReplyEvent, ReplyHead, Running as Counted,
    choice::{ChoiceText, Shown},
    question::Question,
};
use crate::{
    engine::{CancelFlag, EngineFault, Event, EventSender, Generate, Job, Priority, Work, event_channel},
    journal::{ChoiceRecord, Completion, Content, JournalError, Options, Receipt, Slot, Timing},
    metrics::AdapterSeries,
    terms::{Digest, Ending, FinishReason, Hasher, RecordPolicy, TokenScore, Usage},
    text::StopStrings,
};

/// An admitted answer. Whoever drops it early leaves a record of that.
pub struct Reply {
    head: ReplyHead,
    series: Arc<AdapterSeries>,
    gateway: Gateway,
    question: Question,
    slot: Slot,
    content: Option<Arc<Content>>,
    options: Options,
    choices: Vec<Running>,
    /// Events by choice; `None` once a choice's channel is closed.
    events: SelectAll<BoxStream<'static, (u32, Option<Event>)>>,
    receipts: FuturesUnordered<BoxFuture<'static, Finish>>,
    /// What was put on record, for whoever compares it.
    kept: Option<Vec<ChoiceRecord>>,
    ready: VecDeque<ReplyEvent>,
    admitted: Instant,
    created_ms: i64,
    cut_off: watch::Receiver<bool>,
    usage: Usage,
    timing: Timing,
    finished: usize,
    done: bool,
    /// Last, so that the answer is on its way to the record when it no longer counts.
    _running: Counted,
}

/// One choice while it runs.
struct Running {
    cancel: CancelFlag,
    text: ChoiceText,
    last_token: Option<Instant>,
    /// Its row is on its way.
    over: bool,
}

/// What an answer under way waits for.
enum Next {
    Receipt(Finish),
    Event(u32, Option<Event>),
    CutOff,
    Deadline,
}

/// A choice whose row is durable, or failed to be.
struct Finish {
    choice: u32,
    reason: FinishReason,
    written: Result<(), JournalError>,
}

/// Submits every choice. From here on, whatever happens is recorded.
pub(super) async fn begin(gateway: &Gateway, question: Question, slot: Slot) -> Result<Reply, AskError> {
    let admitted = Instant::now();
    let echoes = echo_scores(gateway, &question).await?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let full = question.policy == RecordPolicy::Full;
    let mut reply = Reply {
        head: head(gateway, &question, created.as_secs() as i64),
        series: match &question.lease {
            Some(lease) => gateway.metrics().adapter(lease.name.as_str(), &lease.version.short()),
            None => gateway.metrics().adapter(gateway.base_name(), &gateway.settings().base.short()),
        },
        content: full.then(|| Arc::new(question.content(gateway.journal().redactor(), gateway.text()))),
        options: question.options(),
        choices: Vec::new(),
        events: SelectAll::new(),
        receipts: FuturesUnordered::new(),
        kept: None,
        ready: VecDeque::new(),
        admitted,
        created_ms: created.as_millis() as i64,
        cut_off: gateway.0.cut_off.subscribe(),
        usage: Usage {
            prompt_tokens: question.prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
            ..Usage::default()
        },
        timing: question.timing,
        finished: 0,
        done: false,
        _running: gateway.count_running(&question.ask.id, question.ask.caller.key.as_deref()),
        gateway: gateway.clone(),
        question,
        slot,
    };
    let mut started = Ok(());
    for prompt in 0..reply.question.prompts.len() {
        for _ in 0..reply.question.ask.n {
            started = started.and_then(|()| reply.start_choice(prompt));
        }
    }
    if let Err(error) = started {
        // Refused, not admitted: the choices that were already submitted leave no record.
        reply.choices.drain(..).for_each(|choice| choice.cancel.cancel());
        return Err(error);
    }
    reply.show_echoes(echoes);
    for choice in 0..reply.choices.len() {
        if reply.question.prompts[reply.prompt_of(choice)].max_tokens == 0 {
            reply.end_choice(choice, FinishReason::Length);
        }
    }
    reply.series.prompt_tokens.inc_by(reply.usage.prompt_tokens as u64);
    Ok(reply)
}

/// The scores of echoed prompts, where log-probabilities are wanted: one run of the prompt, before the answer begins.
async fn echo_scores(gateway: &Gateway, question: &Question) -> Result<Vec<Vec<TokenScore>>, AskError> {
    let (true, Some(top)) = (question.ask.echo, question.ask.top_logprobs) else { return Ok(Vec::new()) };
    let mut receivers = Vec::new();
    for prompt in &question.prompts {
        let work = Work::Score { top };
        let (events, receiver) = event_channel(&work, prompt.tokens.len());
        gateway.engine().submit(question.job(work, prompt.tokens.clone(), CancelFlag::default(), events))?;
        receivers.push(receiver);
    }
    let mut all = Vec::new();
    for mut receiver in receivers {
        let mut scores = Vec::new();
        loop {
            match receiver.recv().await {
                Some(Event::Token { score, .. }) => scores.push(score),
                Some(Event::Started { .. }) => {}
                Some(Event::Finished(_)) => break,
                Some(Event::Failed(fault)) => return Err(fault.into()),
                Some(Event::Hidden(_)) | None => return Err(EngineFault::Stopped.into()),
            }
        }
        all.push(scores);
    }
    Ok(all)
}

fn head(gateway: &Gateway, question: &Question, created: i64) -> ReplyHead {
    let base = gateway.settings().base;
    let (model, adapter) = match &question.lease {
        Some(lease) => (lease.name.to_string(), Some(lease.version)),
        None => (gateway.base_name().to_owned(), None),
    };
    let part = |digest: Option<Digest>| digest.map_or(Vec::new(), |digest| digest.as_bytes().to_vec());
    let fingerprint = Hasher::new()
        .part("base", base.as_bytes())
        .part("adapter", &part(adapter.map(|version| version.0)))
        .part("template", &part(question.template))
        .part("tokenizer", gateway.text().digest().as_bytes())
        .part("build", env!("CARGO_PKG_VERSION").as_bytes())
        .finish();
    let mut version = format!("base={}", base.short());
    for (name, digest) in [("adapter", adapter.map(|version| version.0)), ("template", question.template)] {
        if let Some(digest) = digest {
            version.push_str(&format!("; {name}={}", digest.short()));
        }
    }
    ReplyHead {
        id: question.ask.id.clone(),
        created,
        model,
        fingerprint: format!("fp_{}", fingerprint.short()),
        version,
        found: question.lease.as_ref().map(|lease| lease.found),
        conversation: question.belonging.placement.conversation.clone(),
        prompt_tokens: question.prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
    }
}

impl Question {
    fn job(&self, work: Work, tokens: Arc<[u32]>, cancel: CancelFlag, events: EventSender) -> Job {
        Job {
            work,
            tokens,
            adapter: self.lease.as_ref().map(|lease| lease.weights.clone()),
            salt: self.ask.caller.salt,
            tenant: self.ask.caller.tenant,
            priority: Priority::Normal,
            cancel,
            events,
        }
    }
}

impl Reply {
    pub fn head(&self) -> &ReplyHead {
        &self.head
    }

    /// What comes next; `None` after `Done`. Whoever stops calling leaves the answer, and should drop it.
    ///
    /// # Errors
    /// [`ReplyError`]; the answer is over then, and on record as such.
    pub async fn next(&mut self) -> Result<Option<ReplyEvent>, ReplyError> {
        let timeout = self.gateway.settings().answer_timeout;
        let deadline = tokio::time::Instant::from_std(self.admitted + timeout);
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.done {
                return Ok(None);
            }
            let next = tokio::select! {
                biased;
                Some(finish) = self.receipts.next(), if !self.receipts.is_empty() => Next::Receipt(finish),
                _ = self.cut_off.wait_for(|cut_off| *cut_off) => Next::CutOff,
                () = tokio::time::sleep_until(deadline) => Next::Deadline,
                Some((choice, event)) = self.events.next(), if !self.events.is_empty() => Next::Event(choice, event),
            };
            match next {
                Next::Receipt(finish) => self.acknowledge(finish)?,
                Next::Event(choice, event) => self.take(choice as usize, event)?,
                Next::CutOff => return Err(self.break_off(Ending::CutOff, ReplyError::CutOff)),
                Next::Deadline => {
                    let limit_ms = timeout.as_millis() as u64;
                    return Err(self.break_off(Ending::CutOff, ReplyError::Deadline { limit_ms }));
                }
            }
        }
    }

    /// Runs the answer to its end, and gives what was generated for each choice, whatever the policy keeps of it.
    ///
    /// # Errors
    /// As [`Reply::next`].
    pub(super) async fn into_records(mut self) -> Result<Vec<ChoiceRecord>, ReplyError> {
        self.kept = Some(Vec::new());
        while self.next().await?.is_some() {}
        Ok(self.kept.take().unwrap_or_default())
    }

    fn start_choice(&mut self, prompt: usize) -> Result<(), AskError> {
        let question = &self.question;
        let index = self.choices.len() as u32;
        let cancel = CancelFlag::default();
        let read = &question.prompts[prompt];
        if read.max_tokens > 0 {
            let work = Work::Generate(Generate {
                sampling: question.sampling.clone(),
                max_tokens: read.max_tokens,
                min_tokens: question.ask.min_tokens,
                stop_tokens: question.stop_tokens.clone(),
                logit_bias: question.ask.logit_bias.clone().into(),
                top: question.ask.top_logprobs.unwrap_or(0),
                seed: question.seed,
                choice: index,
            });
            let (sender, receiver) = event_channel(&work, read.tokens.len());
            self.gateway.engine().submit(question.job(work, read.tokens.clone(), cancel.clone(), sender))?;
            let events = ReceiverStream::new(receiver).map(Some).chain(stream::iter([None]));
            self.events.push(events.map(move |event| (index, event)).boxed());
        }
        let stops = StopStrings::new(question.ask.stop.clone(), question.ask.include_stop);
        let detokenizer = self.gateway.text().detokenizer(question.ask.skip_special_tokens, &read.tokens);
        let text = ChoiceText::new(detokenizer, stops);
        self.choices.push(Running { cancel, text, last_token: None, over: false });
        Ok(())
    }

    fn prompt_of(&self, choice: usize) -> usize {
        choice / self.question.ask.n.max(1) as usize
    }

    fn show_echoes(&mut self, scores: Vec<Vec<TokenScore>>) {
        if !self.question.ask.echo {
            return;
        }
        for choice in 0..self.choices.len() {
            let prompt = self.prompt_of(choice);
            let tokens = self.question.prompts[prompt].tokens.to_vec();
            let text = self.gateway.text().decode(&tokens, self.question.ask.skip_special_tokens).unwrap_or_default();
            let scores = scores.get(prompt).cloned().unwrap_or_default();
            self.ready.push_back(ReplyEvent::Echo { choice: choice as u32, text, tokens, scores });
        }
    }

    fn take(&mut self, choice: usize, event: Option<Event>) -> Result<(), ReplyError> {
        if self.choices[choice].over {
            return Ok(());
        }
        match event {
            Some(Event::Started { at, cached_tokens }) => {
                self.timing.queue_us = at.duration_since(self.admitted).as_micros() as u64;
                let metrics = self.gateway.metrics();
                metrics.prefix_queried.inc_by(self.question.prompts[self.prompt_of(choice)].tokens.len() as u64);
                metrics.prefix_hits.inc_by(cached_tokens as u64);
                if choice.is_multiple_of(self.question.ask.n.max(1) as usize) {
                    self.usage.cached_tokens += cached_tokens;
                }
            }
            Some(Event::Token { score, at }) => {
                self.count_token(choice, at);
                let ends = self.question.stop_tokens.binary_search(&score.token).is_ok();
                let shown = self.choices[choice].text.push(score, ends && !self.question.ask.include_stop);
                let stopped = shown.stopped;
                self.show(choice, shown);
                if stopped {
                    self.choices[choice].cancel.cancel();
                    self.end_choice(choice, FinishReason::Stop);
                }
            }
            Some(Event::Finished(reason)) => {
                let shown = self.choices[choice].text.finish();
                let reason = if shown.stopped { FinishReason::Stop } else { reason };
                self.show(choice, shown);
                self.end_choice(choice, reason);
            }
            Some(Event::Failed(fault)) => return Err(self.break_off(Ending::Failed, fault.into())),
            Some(Event::Hidden(_)) | None => {
                return Err(self.break_off(Ending::Failed, EngineFault::Stopped.into()));
            }
        }
        Ok(())
    }

    fn count_token(&mut self, choice: usize, at: Instant) {
        self.usage.completion_tokens += 1;
        self.series.generated_tokens.inc();
        if self.timing.first_token_us.is_none() {
            let since_admission = at.duration_since(self.admitted);
            self.timing.first_token_us = Some(since_admission.as_micros() as u64);
            self.series.time_to_first_token.observe(since_admission.as_secs_f64());
        }
        if let Some(before) = self.choices[choice].last_token.replace(at) {
            self.series.inter_token.observe(at.duration_since(before).as_secs_f64());
        }
    }

    fn show(&mut self, choice: usize, mut shown: Shown) {
        if self.question.ask.top_logprobs.is_none() {
            shown.scores.clear();
        }
        if !shown.text.is_empty() || !shown.scores.is_empty() {
            let Shown { text, scores, .. } = shown;
            self.ready.push_back(ReplyEvent::Piece { choice: choice as u32, text, scores });
        }
    }

    /// Sends a choice's row on its way; its finish is shown when the row is durable.
    fn end_choice(&mut self, choice: usize, reason: FinishReason) {
        let receipt = self.record(choice, Ending::Finished(reason), None);
        let choice = choice as u32;
        self.receipts.push(Box::pin(async move { Finish { choice, reason, written: receipt.await } }));
    }

    fn acknowledge(&mut self, finish: Finish) -> Result<(), ReplyError> {
        if let Err(error) = finish.written {
            return Err(self.break_off(Ending::Failed, ReplyError::Record { reason: error.to_string() }));
        }
        self.ready.push_back(ReplyEvent::Finished { choice: finish.choice, reason: finish.reason });
        self.finished += 1;
        if self.finished == self.choices.len() {
            self.ready.push_back(ReplyEvent::Done { usage: self.usage });
            self.done = true;
        }
        Ok(())
    }

    fn break_off(&mut self, ending: Ending, error: ReplyError) -> ReplyError {
        self.close(ending, Some(error.to_string()));
        error
    }

    /// Ends and records every choice that still runs.
    fn close(&mut self, ending: Ending, fault: Option<String>) {
        self.done = true;
        for choice in 0..self.choices.len() {
            if !self.choices[choice].over {
                self.choices[choice].cancel.cancel();
                // The journal counts and reports rows that it could not write.
                drop(self.record(choice, ending, fault.clone()));
            }
        }
    }

    fn record(&mut self, choice: usize, ending: Ending, fault: Option<String>) -> Receipt {
        let running = &mut self.choices[choice];
        running.over = true;
        let tokens = running.text.tokens();
        let record = ChoiceRecord {
            index: choice as u32,
            ending,
            tokens,
            fault,
            text: Some(running.text.text().to_owned()),
            scores: running.text.take_scores(),
            tool_calls: None,
            thread: self.question.belonging.thread_after(running.text.text()),
        };
        self.timing.total_us = self.admitted.elapsed().as_micros() as u64;
        self.series.ended(ending.as_str());
        if let Some(kept) = &mut self.kept {
            kept.push(record.clone());
        }
        let fact = self.fact(record);
        self.slot.record(fact)
    }

    fn fact(&self, choice: ChoiceRecord) -> Completion {
        let ask = &self.question.ask;
        Completion {
            id: ask.id.clone(),
            created_ms: self.created_ms,
            request_id: ask.request_id.clone(),
            key: ask.caller.key.clone(),
            kind: ask.kind,
            model: self.head.model.clone(),
            base: self.gateway.settings().base,
            adapter: self.question.lease.as_ref().map(|lease| (lease.name.clone(), lease.version)),
            template: self.question.template,
            tokenizer: self.gateway.text().digest(),
            build: Some(self.gateway.settings().build.clone()),
            origin: ask.origin,
            system: self.question.belonging.system,
            sampling: self.question.sampling.clone(),
            seed: self.question.seed,
            options: self.options.clone(),
            usage: self.usage,
            timing: self.timing,
            policy: self.question.policy,
            redaction: None,
            stored: ask.store,
            user: ask.user.clone(),
            safety_identifier: ask.safety_identifier.clone(),
            placement: Some(self.question.belonging.placement.clone()),
            sketch: self.question.sketch,
            metadata: ask.metadata.clone(),
            content: self.content.clone(),
            choices: vec![choice],
            erased_ms: None,
            expired_ms: None,
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.close(Ending::ClientLeft, None);
    }
}
