//! Where a step's time goes.

use std::time::Instant;

/// The parts of a step that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Checks, block copies, positions and attention work.
    Plan,
    Embed,
    /// Residual additions, norms, and the quantization behind them.
    Norm,
    /// Adapters' A, where it is not shrunk with the rows themselves.
    Shrink,
    /// Query, key and value, with adapters' B; as for the other projections.
    Qkv,
    /// Queries and keys normed and rotated, keys and values stored.
    Place,
    Attention,
    /// Partial attention results joined and quantized.
    Join,
    Output,
    /// Gate and up, with the gate's activation.
    GateUp,
    /// What `down` reads, quantized.
    Quantize,
    Down,
    Head,
    /// Scores and samples.
    Answer,
}

impl Phase {
    pub const ALL: [Self; 14] = [
        Self::Plan,
        Self::Embed,
        Self::Norm,
        Self::Shrink,
        Self::Qkv,
        Self::Place,
        Self::Attention,
        Self::Join,
        Self::Output,
        Self::GateUp,
        Self::Quantize,
        Self::Down,
        Self::Head,
        Self::Answer,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Shrink => "shrink",
            Self::Qkv => "qkv",
            Self::Place => "place",
            Self::Attention => "attention",
            Self::Join => "join",
            Self::Output => "output",
            Self::GateUp => "gate, up",
            Self::Quantize => "quantize",
            Self::Down => "down",
            Self::Head => "head",
            Self::Answer => "answer",
        }
    }
}

/// Time by phase over some steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings {
    pub steps: u64,
    /// Microseconds of all steps together, for each phase in order of [`Phase::ALL`].
    pub phases: Vec<(Phase, f64)>,
}

/// What the machine can do at best, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineLimits {
    /// Bytes per second that can be read from memory; `None` where too little of it is free to tell.
    pub read: Option<f64>,
    /// Bytes of the cache before memory, where the system tells: what a step reads and this cache holds need not come from memory.
    pub last_level: Option<u64>,
    /// Multiplications with addition per second of the kernel for most of the weights, from the nearest cache.
    pub multiply: f64,
}

/// What a phase of a step cannot do without: the base's weights, keys and values, and adapters' low ranks. Activations, embeddings,
/// and what adapters do otherwise, are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseNeeds {
    pub phase: Phase,
    /// Read, each once, or written.
    pub bytes: u64,
    /// Multiplications with addition.
    pub multiplications: u64,
}

/// Adds up the time of each phase while somebody wants to know it.
#[derive(Default)]
pub struct Clock {
    steps: u64,
    /// The end of the last phase; `None` while nothing is timed.
    last: Option<Instant>,
    on: bool,
    micros: [f64; Phase::ALL.len()],
}

impl Clock {
    /// What has been timed since the last call; timing begins with the first.
    pub fn take(&mut self) -> Timings {
        let phases = Phase::ALL.into_iter().zip(self.micros).collect();
        let timings = Timings { steps: self.steps, phases };
        *self = Self { on: true, ..Self::default() };
        timings
    }

    pub fn begin(&mut self) {
        self.steps += u64::from(self.on);
        self.last = self.on.then(Instant::now);
    }

    /// What has passed since the last phase belongs to `phase`.
    pub fn lap(&mut self, phase: Phase) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.micros[phase as usize] += now.duration_since(*last).as_secs_f64() * 1e6;
            *last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_by_phase_from_the_first_question_on() {
        let mut clock = Clock::default();
        clock.begin();
        clock.lap(Phase::Head);
        assert_eq!(clock.take().steps, 0);
        clock.begin();
        clock.lap(Phase::Head);
        let timings = clock.take();
        assert_eq!(timings.steps, 1);
        let timed: Vec<Phase> =
            timings.phases.iter().filter(|(_, micros)| *micros > 0.0).map(|(phase, _)| *phase).collect();
        assert_eq!(timed, [Phase::Head]);
        assert!(clock.take().phases.iter().all(|(_, micros)| *micros == 0.0));
    }
}
