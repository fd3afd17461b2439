//! Compute threads. The calling thread is worker 0; the others stay for the life of the pool, spin while a step is under way,
//! and are parked while there is none.
//!
//! Every thread has a run of chunks of its own, which it claims one by one, and then claims what is left of the others' runs: so a
//! thread's counter stays in its own cache, and it meets in one phase what it wrote, or fetched, in the phase before. A phase ends
//! when its chunks are finished, not when every thread has come by: a thread that the system has put aside delays a phase
//! only by the chunk it holds, and one that wakes up late finds the work done. Which thread does a chunk never changes what
//! the chunk computes.

use std::{
    any::Any,
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::{self, JoinHandle, Thread},
};

use super::{cores, share::Share};

/// Turns that a worker waits for the next phase before it offers its core to others.
const SPINS: usize = 20_000;

/// Turns that the caller waits for the last chunks before it offers its core to others.
const CALLER_SPINS: usize = 2_000;

/// Offers of the core before a thread is parked. A parked thread leaves its core idle, and the system then moves a waiting
/// one there: that is how a chunk held by a thread that lost its core to a neighbour gets on.
const YIELDS: usize = 64;

/// Threads that share the work of one caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One for each thread, the caller's first, if they are to stay on them.
    cores: Vec<usize>,
    #[cfg(test)]
    order: Order,
}

/// In which order tests have chunks claimed, whichever thread claims them.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub enum Order {
    #[default]
    Forward,
    Backward,
    /// Another one in each phase.
    Shuffled(u64),
}

#[cfg(test)]
impl Order {
    fn of(&mut self, chunks: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..chunks).collect();
        match self {
            Self::Forward => {}
            Self::Backward => order.reverse(),
            Self::Shuffled(state) => {
                for place in (1..chunks).rev() {
                    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    order.swap(place, (*state >> 33) as usize % (place + 1));
                }
            }
        }
        order
    }
}

/// A phase's work, valid while one of its chunks is unfinished.
type Work = *const (dyn Fn(usize) + Sync);

/// A counter on cache lines of its own, so that those who wait for it do not slow down what lies beside it.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// For each thread, the end of its run of chunks in the high half, the next one to be claimed in the low half.
    tickets: Vec<Apart<AtomicU64>>,
    /// Counts phases: what idle workers look at, so that they stay away from the tickets.
    phase: Apart<AtomicU64>,
    finished: Apart<AtomicUsize>,
    /// Chunks of this phase; written with `work`.
    chunks: UnsafeCell<usize>,
    /// Written by the caller when no chunk is left, read by those who hold one.
    work: UnsafeCell<Option<Work>>,
    /// The first panic of a phase.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The caller, when it is parked until the last chunk is finished.
    caller: Mutex<Option<Thread>>,
    caller_waits: AtomicBool,
    /// One flag for each worker that is parked, or about to be.
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
}

// SAFETY: `work` and `chunks` are written only by the caller, which holds the pool exclusively, and only while no chunk is claimed
// or claimable; they are read only by a thread that holds a chunk which it has not reported, after an acquiring read of a ticket that was
// released after the write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is followed only while the work it points to is borrowed by `Pool::run`.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` in all, the caller among them; at least 1.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::on(threads, &[])
    }

    /// A pool whose threads stay on one core each, as far as the process has as many and the system does it; the caller once it
    /// [settles](Self::settle).
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn pinned(threads: usize) -> std::io::Result<Self> {
        let cores = cores::allowed();
        Self::on(threads, if cores.len() < threads { &[] } else { &cores[..threads] })
    }

    fn on(threads: usize, cores: &[usize]) -> std::io::Result<Self> {
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            tickets: (0..=workers).map(|_| Apart(AtomicU64::new(0))).collect(),
            phase: Apart(AtomicU64::new(0)),
            finished: Apart(AtomicUsize::new(0)),
            chunks: UnsafeCell::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            caller: Mutex::new(None),
            caller_waits: AtomicBool::new(false),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(workers),
            cores: cores.to_vec(),
            #[cfg(test)]
            order: Order::default(),
        };
        for index in 0..workers {
            let (shared, core) = (Arc::clone(&pool.shared), cores.get(index + 1).copied());
            let worker = thread::Builder::new().name(format!("compute-{}", index + 1));
            let serve = move || {
                core.map(cores::stay_on);
                shared.serve(index);
            };
            pool.workers.push(worker.spawn(serve)?);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes the calling thread, which is to be the caller from now on, stay on its core, if this pool is pinned.
    pub fn settle(&self) {
        if let Some(&core) = self.cores.first() {
            cores::stay_on(core);
        }
    }

    /// Calls `work` once for each chunk below `chunks`, on all threads, and returns when all calls have returned.
    ///
    /// # Panics
    /// If a call panics: with its message, after the other calls have returned.
    pub fn run(&mut self, chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        #[cfg(test)]
        let order = self.order.of(chunks);
        #[cfg(test)]
        let work: &(dyn Fn(usize) + Sync) = &|place| work(order[place]);
        if chunks <= 1 || self.workers.is_empty() {
            return (0..chunks).for_each(work);
        }
        assert!(u32::try_from(chunks).is_ok(), "fewer than 2³² chunks");
        let (shared, threads) = (&*self.shared, self.threads());
        // SAFETY: only the lifetime changes. Every chunk of the last phase is finished and nobody claims one before the tickets
        // below, so nobody reads `work` or `chunks` now; this function returns after the last chunk, so nobody follows the
        // pointer later.
        unsafe {
            *shared.work.get() = Some(std::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work));
            *shared.chunks.get() = chunks;
        }
        shared.finished.0.store(0, Ordering::Relaxed);
        for (thread, ticket) in shared.tickets.iter().enumerate() {
            let (first, end) = (thread * chunks / threads, (thread + 1) * chunks / threads);
            ticket.0.store((end as u64) << 32 | first as u64, Ordering::Release);
        }
        shared.phase.0.fetch_add(1, Ordering::Release);
        self.wake(chunks - 1);
        shared.take_chunks(0);
        shared.wait(chunks);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work` once for each piece of `share`, with its index, on all threads.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn each<S: Share>(&mut self, share: S, work: impl Fn(usize, S::Piece) + Sync) {
        // SAFETY: `run` calls once for each index below `pieces`, and `share` is ours alone.
        self.run(share.pieces(), &|index| work(index, unsafe { share.piece(index) }));
    }

    /// Calls `work` once for each piece of `share`, in order, on the calling thread: for work that is over before others could
    /// join in.
    pub fn here<S: Share>(&mut self, share: S, work: impl Fn(usize, S::Piece)) {
        // SAFETY: each index below `pieces` comes once, and `share` is ours alone.
        (0..share.pieces()).for_each(|index| work(index, unsafe { share.piece(index) }));
    }

    #[cfg(test)]
    pub fn claim(&mut self, order: Order) {
        self.order = order;
    }

    /// Wakes as many parked workers as there is work for.
    fn wake(&self, most: usize) {
        // Pairs with the fence in `sleep`: either the worker sees the new phase, or we see its flag.
        fence(Ordering::SeqCst);
        for (asleep, worker) in self.shared.asleep.iter().zip(&self.workers).take(most) {
            if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::AcqRel) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what its work throws, and has nothing else that could panic.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of worker `index`, the caller not counted.
    fn serve(&self, index: usize) {
        let (mut turns, mut seen) = (0, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let phase = self.phase.0.load(Ordering::Acquire);
            if phase != seen {
                // Chunks of a later phase may be among those taken here; looking for them again does no harm.
                seen = phase;
                self.take_chunks(index + 1);
                turns = 0;
            } else if turns < SPINS {
                turns += 1;
                std::hint::spin_loop();
            } else if turns < SPINS + YIELDS {
                turns += 1;
                thread::yield_now();
            } else {
                self.sleep(index, seen);
                turns = 0;
            }
        }
    }

    /// Parks until there is a phase after `seen`.
    fn sleep(&self, index: usize, seen: u64) {
        let asleep = &self.asleep[index];
        asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = || self.phase.0.load(Ordering::Relaxed) == seen && !self.stop.load(Ordering::SeqCst);
        while asleep.load(Ordering::Acquire) && idle() {
            thread::park();
        }
        asleep.store(false, Ordering::Relaxed);
    }

    /// Does chunks until none is left, this thread's own first, then the others', and reports them.
    fn take_chunks(&self, thread: usize) {
        let (others, own) = self.tickets.split_at(thread);
        let done: usize = own.iter().chain(others).map(|ticket| self.take_run(&ticket.0)).sum();
        if done == 0 {
            return;
        }
        // SAFETY: chunks of this thread are not reported yet, so the phase is not over and `chunks` is not written.
        let chunks = unsafe { *self.chunks.get() };
        if self.finished.0.fetch_add(done, Ordering::AcqRel) + done == chunks {
            // Pairs with the fence in `wait`: either the caller sees the count, or we see that it waits.
            fence(Ordering::SeqCst);
            if self.caller_waits.load(Ordering::Relaxed)
                && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
            {
                caller.unpark();
            }
        }
    }

    /// Does what is left of a run of chunks; says how many that were.
    fn take_run(&self, ticket: &AtomicU64) -> usize {
        let split = |ticket: u64| ((ticket & 0xffff_ffff) as usize, (ticket >> 32) as usize);
        let mut done = 0;
        loop {
            let (next, end) = split(ticket.load(Ordering::Relaxed));
            if next >= end {
                return done;
            }
            let (chunk, end) = split(ticket.fetch_add(1, Ordering::Acquire));
            if chunk >= end {
                return done;
            }
            // SAFETY: this thread holds an unfinished chunk, so `work` is set, is not written, and points to a living closure.
            let work = unsafe { &*(*self.work.get()).expect("work comes before its ticket") };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(chunk))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            done += 1;
        }
    }

    /// Waits until all chunks are finished; others hold the last ones.
    fn wait(&self, chunks: usize) {
        let done = || self.finished.0.load(Ordering::Acquire) == chunks;
        for turn in 0..CALLER_SPINS + YIELDS {
            if done() {
                return;
            }
            if turn < CALLER_SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_waits.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !done() {
            thread::park();
        }
        self.caller_waits.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::share::{cut, spans};

    #[test]
    fn every_chunk_is_done_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for chunks in [0usize, 1, 2, 3, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|chunk| {
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {chunks}");
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pinned_threads_have_a_core_each() {
        let free = cores::allowed();
        let threads = free.len().min(2);
        let mut pool = Pool::pinned(threads).unwrap();
        let found = thread::spawn(move || {
            pool.settle();
            // Each chunk waits for the other, so that both threads take part.
            let met = AtomicUsize::new(0);
            let mut found = vec![Vec::new(); threads];
            pool.each(cut(&mut found, 1), |_, found| {
                met.fetch_add(1, Ordering::Relaxed);
                while met.load(Ordering::Relaxed) < threads {
                    thread::yield_now();
                }
                found[0] = cores::allowed();
            });
            found
        });
        let mut found: Vec<usize> = found.join().unwrap().concat();
        found.sort_unstable();
        assert_eq!(found, free[..threads]);
        assert_eq!(cores::allowed(), free, "nobody else is bound");
    }

    #[test]
    fn a_phase_sees_all_that_the_phase_before_wrote() {
        let mut pool = Pool::new(3).unwrap();
        let (mut one, mut other) = (vec![0usize; 257], vec![0usize; 257]);
        for round in 0..2_000 {
            pool.each(cut(&mut one, 5), |index, piece| {
                piece.iter_mut().for_each(|value| *value = round + index);
            });
            pool.each((cut(&mut other, 1), cut(&mut [(); 257], 1)), |index, (piece, _)| {
                piece[0] = one[256 - index];
            });
            assert!(other.iter().enumerate().all(|(index, value)| *value == round + (256 - index) / 5));
        }
    }

    #[test]
    fn tests_choose_the_order_in_which_chunks_are_claimed() {
        let mut pool = Pool::new(1).unwrap();
        let mut claimed = |order: Order| {
            let seen = Mutex::new(Vec::new());
            pool.claim(order);
            pool.run(40, &|chunk| seen.lock().unwrap().push(chunk));
            seen.into_inner().unwrap()
        };
        let forward: Vec<usize> = (0..40).collect();
        assert_eq!(claimed(Order::Forward), forward);
        assert!(claimed(Order::Backward).into_iter().rev().eq(0..40));
        let mut shuffled = claimed(Order::Shuffled(5));
        assert_ne!(shuffled, forward);
        shuffled.sort_unstable();
        assert_eq!(shuffled, forward, "each once");
    }

    #[test]
    fn uneven_pieces_go_to_their_own_calls() {
        let mut pool = Pool::new(2).unwrap();
        let mut values = vec![9usize; 8];
        pool.each(spans(&mut values, &[0, 3, 3, 7]), |index, piece| piece.fill(index));
        assert_eq!(values, [0, 0, 0, 2, 2, 2, 2, 9]);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3).unwrap();
        for culprit in [0, 50, 99] {
            let done = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|chunk| {
                    assert!(chunk != culprit, "chunk {chunk} is rotten");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let message = outcome.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("chunk {culprit} is rotten"));
            assert_eq!(done.load(Ordering::Relaxed), 99, "the others are done");
        }
        let total = AtomicUsize::new(0);
        pool.run(10, &|chunk| {
            total.fetch_add(chunk, Ordering::Relaxed);
        });
        assert_eq!(total.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn parked_workers_and_a_parked_caller_are_woken() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            while !pool.shared.asleep[0].load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // Each of the two chunks waits for the other, so both threads have to take part.
            let met = AtomicUsize::new(0);
            pool.run(2, &|_| {
                met.fetch_add(1, Ordering::Relaxed);
                while met.load(Ordering::Relaxed) < 2 {
                    thread::yield_now();
                }
            });
            // One chunk ends only when the caller is parked.
            let shared = Arc::clone(&pool.shared);
            let caller = thread::current().id();
            let other_has_begun = AtomicBool::new(false);
            pool.run(2, &|_| {
                if thread::current().id() == caller {
                    while !other_has_begun.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                } else {
                    other_has_begun.store(true, Ordering::Relaxed);
                    while !shared.caller_waits.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                }
            });
        }
    }
}
