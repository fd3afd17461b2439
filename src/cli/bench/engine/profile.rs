//! Where a step's time goes, beside what the machine can do.

use std::fmt;

use serde::Serialize;

use crate::model::{MachineLimits, PhaseNeeds, Timings};

/// What the machine can do at best.
#[derive(Serialize)]
pub struct Machine {
    memory_bytes_per_second: Option<f64>,
    multiply_adds_per_second: f64,
    last_level_cache_bytes: Option<u64>,
}

/// A mean step, by phase and as a whole.
#[derive(Serialize)]
pub struct Profile {
    phases: Vec<Part>,
    step: Part,
}

/// A part of a mean step.
#[derive(Serialize)]
struct Part {
    part: &'static str,
    microseconds: f64,
    /// Of the step's time.
    share: f64,
    /// Of weights, keys and values, and adapters' low ranks, each read once, or written.
    bytes: u64,
    /// Of what can be read from memory in that time; `None` where the last-level cache has room for all that the step reads, so
    /// that nothing need come from memory.
    memory_share: Option<f64>,
    /// Of what can be multiplied in that time.
    compute_share: f64,
}

impl From<&MachineLimits> for Machine {
    fn from(limits: &MachineLimits) -> Self {
        Self {
            memory_bytes_per_second: limits.read,
            multiply_adds_per_second: limits.multiply,
            last_level_cache_bytes: limits.last_level,
        }
    }
}

impl Profile {
    /// Of the steps of `timings`, each of which needs about `needs`.
    pub fn of(limits: &MachineLimits, needs: &[PhaseNeeds], timings: &Timings) -> Self {
        let steps = timings.steps.max(1) as f64;
        let total: f64 = timings.phases.iter().map(|(_, micros)| micros / steps).sum();
        let bytes = needs.iter().map(|needs| needs.bytes).sum();
        let read = limits.read.filter(|_| limits.last_level.is_none_or(|cache| bytes > cache));
        let part = |part, microseconds: f64, bytes: u64, multiplications: u64| {
            let seconds = (microseconds * 1e-6).max(f64::MIN_POSITIVE);
            Part {
                part,
                microseconds,
                share: microseconds / total.max(f64::MIN_POSITIVE),
                bytes,
                memory_share: read.map(|read| bytes as f64 / seconds / read),
                compute_share: multiplications as f64 / seconds / limits.multiply,
            }
        };
        let phases = timings.phases.iter().filter(|(_, micros)| *micros > 0.0).map(|(phase, micros)| {
            let needs = needs.iter().find(|needs| needs.phase == *phase);
            part(
                phase.name(),
                micros / steps,
                needs.map_or(0, |needs| needs.bytes),
                needs.map_or(0, |needs| needs.multiplications),
            )
        });
        let multiplications = needs.iter().map(|needs| needs.multiplications).sum();
        Self { phases: phases.collect(), step: part("whole step", total, bytes, multiplications) }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let multiply = self.multiply_adds_per_second / 1e9;
        match self.memory_bytes_per_second {
            Some(read) => write!(f, "this machine: {:.1} GB/s from memory, ", read / 1e9)?,
            None => {
                write!(f, "this machine: too little memory is free to tell how fast it is read beyond the caches; ")?;
            }
        }
        write!(f, "{multiply:.0} G multiply-adds/s in this model's main kernel")?;
        if let Some(cache) = self.last_level_cache_bytes {
            write!(
                f,
                "\nwhere all that a step reads fits in the last-level cache ({} MiB), it need not come from memory: what share \
                 of its limit the step reaches cannot be judged, and is not shown",
                cache >> 20
            )?;
        }
        write!(f, "\n  {:<12} {:>9} {:>7} {:>9} {:>8} {:>8}", "", "µs", "share", "MB", "memory", "compute")
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        for Part { part, microseconds, share, bytes, memory_share, compute_share } in
            self.phases.iter().chain([&self.step])
        {
            write!(f, "  {part:<12} {microseconds:>9.1} {:>7}", percent(*share))?;
            if *bytes > 0 {
                let memory = memory_share.map_or_else(|| "-".to_owned(), percent);
                write!(f, " {:>9.2} {memory:>8} {:>8}", *bytes as f64 / 1e6, percent(*compute_share))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phase;

    fn limits(read: Option<f64>, last_level: Option<u64>) -> MachineLimits {
        MachineLimits { read, last_level, multiply: 1e9 }
    }

    fn profile(limits: &MachineLimits) -> Profile {
        let needs = [
            PhaseNeeds { phase: Phase::Attention, bytes: 1_000, multiplications: 50_000 },
            PhaseNeeds { phase: Phase::Down, bytes: 3_000, multiplications: 150_000 },
        ];
        let phases = vec![(Phase::Norm, 200.0), (Phase::Attention, 200.0), (Phase::Down, 400.0), (Phase::Head, 0.0)];
        Profile::of(limits, &needs, &Timings { steps: 2, phases })
    }

    #[test]
    fn a_step_is_the_sum_of_its_phases() {
        let Profile { phases, step } = profile(&limits(Some(1e8), Some(3_999)));
        let parts: Vec<&str> = phases.iter().map(|part| part.part).collect();
        assert_eq!(parts, ["norm", "attention", "down"], "a phase that took no time is left out");
        assert_eq!((step.microseconds, step.share, step.bytes), (400.0, 1.0, 4_000));
        // 4,000 bytes in 400 µs are a tenth of 100 MB/s; 200,000 multiplications half of a billion a second.
        assert!((step.memory_share.unwrap() - 0.1).abs() < 1e-9 && (step.compute_share - 0.5).abs() < 1e-9);
        assert!((phases[2].share - 0.5).abs() < 1e-9 && (phases[2].memory_share.unwrap() - 0.15).abs() < 1e-9);
    }

    #[test]
    fn what_a_cache_has_room_for_is_no_share_of_the_memorys_limit() {
        for limits in [limits(Some(1e8), Some(4_000)), limits(None, None)] {
            let profile = profile(&limits);
            assert!(profile.phases.iter().chain([&profile.step]).all(|part| part.memory_share.is_none()));
            let text = profile.to_string();
            let last = text.lines().last().expect("a line");
            assert!(last.contains("whole step") && last.contains(" - ") && last.ends_with("50.0 %"), "{text}");
        }
    }
}
