//! What the engine shows to other threads, in atomics, so that nobody has to ask it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The engine's state at a glance. A healthy engine steps while it has work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineLoad {
    /// Sequences with a place.
    pub running: usize,
    /// Sequences without a place, those that were preempted included.
    pub waiting: usize,
    pub kv_blocks_used: usize,
    pub kv_blocks: usize,
    /// Since the last step ended; since the start, before the first.
    pub since_last_step: Duration,
    /// There is work, and no step has ended for longer than the setting allows.
    pub stalled: bool,
    /// The engine thread is gone and takes no more jobs.
    pub stopped: bool,
}

/// Written by the engine thread (the desk by submitters too), read by all. The numbers are independent of each other.
#[derive(Debug)]
pub struct Pulse {
    begun: Instant,
    stall: Duration,
    kv_blocks: usize,
    max_queued: usize,
    running: AtomicUsize,
    preempted: AtomicUsize,
    kv_used: AtomicUsize,
    /// A [`Desk`]: one word, so that a seat is never given against a place that has just been taken.
    desk: AtomicU64,
    /// The end of the last step, the last time that work came to an idle engine, and the last time that sequences
    /// ended: in microseconds since `begun`.
    stepped_us: AtomicU64,
    woken_us: AtomicU64,
    ended_us: AtomicU64,
    /// Recent mean time between two endings while there was work; 0 before the first.
    pace_us: AtomicU64,
    stopping: AtomicBool,
    stopped: AtomicBool,
}

/// The places and blocks in use, as the scheduler counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    pub running: usize,
    pub preempted: usize,
    pub kv_used: usize,
    pub room: usize,
}

impl Pulse {
    pub fn new(stall: Duration, kv_blocks: usize, max_queued: usize, places: usize) -> Self {
        let room = places.min(1 << 30) as u32;
        Self {
            begun: Instant::now(),
            stall,
            kv_blocks,
            // The desk counts in 32 bits.
            max_queued: max_queued.min(1 << 30),
            running: AtomicUsize::new(0),
            preempted: AtomicUsize::new(0),
            kv_used: AtomicUsize::new(0),
            desk: AtomicU64::new(Desk { queued: 0, room }.pack()),
            stepped_us: AtomicU64::new(0),
            woken_us: AtomicU64::new(0),
            ended_us: AtomicU64::new(0),
            pace_us: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn load(&self) -> EngineLoad {
        let now = self.now_us();
        let running = self.running.load(Relaxed);
        let waiting = self.waiting();
        let beat = self.stepped_us.load(Relaxed).max(self.woken_us.load(Relaxed));
        let stopped = self.is_stopped();
        EngineLoad {
            running,
            waiting,
            kv_blocks_used: self.kv_used.load(Relaxed),
            kv_blocks: self.kv_blocks,
            since_last_step: Duration::from_micros(now.saturating_sub(self.stepped_us.load(Relaxed))),
            stalled: !stopped && running + waiting > 0 && Duration::from_micros(now.saturating_sub(beat)) > self.stall,
            stopped,
        }
    }

    /// Sequences without a place, those that were preempted included.
    pub fn waiting(&self) -> usize {
        self.queued() + self.preempted.load(Relaxed)
    }

    /// Takes a seat in the queue, or says how many wait. Places that nobody else has a claim to come on top of the
    /// queue's own length, so that a burst at an idle engine is not refused.
    pub fn seat(self: &Arc<Self>) -> Result<Seat, usize> {
        let taken = self.desk.fetch_update(Relaxed, Relaxed, |word| {
            let desk = Desk::unpack(word);
            let free = (desk.queued as usize) < self.max_queued + desk.room as usize;
            free.then(|| Desk { queued: desk.queued + 1, ..desk }.pack())
        });
        let before = taken.map_err(|word| (Desk::unpack(word).queued as usize).min(self.max_queued))?;
        if Desk::unpack(before).queued == 0 && self.running.load(Relaxed) == 0 {
            self.woken_us.fetch_max(self.now_us(), Relaxed);
        }
        Ok(Seat { pulse: Arc::clone(self), admitted: false })
    }

    fn queued(&self) -> usize {
        Desk::unpack(self.desk.load(Relaxed)).queued as usize
    }

    fn change_desk(&self, change: impl Fn(Desk) -> Desk) {
        let change = |word| Some(change(Desk::unpack(word)).pack());
        // The closure never declines.
        let _ = self.desk.fetch_update(Relaxed, Relaxed, change);
    }

    /// How long those who wait now will take at the recent pace: then a place in the queue is free even if nobody gives
    /// up. A second where no pace is known yet, and never more than a minute.
    pub fn retry_after_ms(&self) -> u64 {
        let pace = match self.pace_us.load(Relaxed) {
            0 => return 1000,
            // Where nothing has ended for longer than usual, that is the pace.
            pace => {
                pace.max(self.now_us().saturating_sub(self.ended_us.load(Relaxed).max(self.woken_us.load(Relaxed))))
            }
        };
        (pace.saturating_mul(self.waiting().max(1) as u64) / 1000).clamp(1, 60_000)
    }

    pub fn show(&self, occupancy: Occupancy) {
        self.running.store(occupancy.running, Relaxed);
        self.preempted.store(occupancy.preempted, Relaxed);
        self.kv_used.store(occupancy.kv_used, Relaxed);
        self.change_desk(|desk| Desk { room: occupancy.room.min(1 << 30) as u32, ..desk });
    }

    /// A step is over and `ended` sequences left with it.
    pub fn stepped(&self, ended: usize) {
        let now = self.now_us();
        self.stepped_us.store(now, Relaxed);
        if ended == 0 {
            return;
        }
        let since = now.saturating_sub(self.ended_us.load(Relaxed).max(self.woken_us.load(Relaxed)));
        let each = (since / ended as u64).max(1);
        let pace = match self.pace_us.load(Relaxed) {
            0 => each,
            pace => (pace * 7 + each) / 8,
        };
        self.pace_us.store(pace.max(1), Relaxed);
        self.ended_us.store(now, Relaxed);
    }

    pub fn ask_to_stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    pub fn mark_stopped(&self) {
        self.stopped.store(true, Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }
}

/// Who came in and has no place yet, and what is free for them.
#[derive(Clone, Copy)]
struct Desk {
    /// Submitted and never yet admitted.
    queued: u32,
    /// Free places that nobody in the scheduler's queue has a claim to.
    room: u32,
}

impl Desk {
    fn pack(self) -> u64 {
        u64::from(self.room) << 32 | u64::from(self.queued)
    }

    fn unpack(word: u64) -> Self {
        Self { queued: word as u32, room: (word >> 32) as u32 }
    }
}

/// A seat in the queue, given up when dropped.
#[derive(Debug)]
pub struct Seat {
    pulse: Arc<Pulse>,
    admitted: bool,
}

impl Seat {
    /// Turns the seat into a place.
    pub fn admitted(mut self) {
        self.admitted = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let place = u32::from(self.admitted);
        self.pulse.change_desk(|desk| Desk { queued: desk.queued - 1, room: desk.room.saturating_sub(place) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(max_queued: usize, places: usize) -> Arc<Pulse> {
        Arc::new(Pulse::new(Duration::ZERO, 8, max_queued, places))
    }

    #[test]
    fn free_places_come_on_top_of_the_queue() {
        let pulse = pulse(1, 2);
        let seats: Vec<_> = (0..3).map(|_| pulse.seat().expect("two places and a queue of one")).collect();
        assert_eq!(pulse.seat().expect_err("full"), 1);
        drop(seats);
        assert_eq!(pulse.waiting(), 0);
    }

    #[test]
    fn an_admitted_sequence_takes_its_place_along() {
        let pulse = pulse(1, 1);
        pulse.seat().expect("a place").admitted();
        let _waits = pulse.seat().expect("the queue holds one");
        assert!(pulse.seat().is_err(), "the place is taken and so is the queue");
    }

    #[test]
    fn an_idle_engine_is_not_stalled_and_one_that_never_steps_is() {
        let pulse = pulse(4, 0);
        assert!(!pulse.load().stalled);
        let _seat = pulse.seat().expect("the queue holds four");
        while pulse.load().since_last_step.is_zero() || !pulse.load().stalled {
            std::thread::yield_now();
        }
        pulse.mark_stopped();
        assert!(!pulse.load().stalled, "what has stopped says so instead");
    }

    #[test]
    fn the_advice_grows_with_those_who_wait() {
        let pulse = pulse(100, 0);
        assert_eq!(pulse.retry_after_ms(), 1000, "nothing is known yet");
        pulse.pace_us.store(20_000, Relaxed);
        pulse.ended_us.store(u64::MAX / 2, Relaxed);
        let seats: Vec<_> = (0..50).map(|_| pulse.seat().expect("room")).collect();
        assert_eq!(pulse.retry_after_ms(), 1000, "50 at 20 ms each");
        drop(seats);
        assert_eq!(pulse.retry_after_ms(), 20);
    }
}
