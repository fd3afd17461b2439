//! Threads on cores of their own.

/// The cores that the calling thread may run on, in order; empty where the system does not tell.
pub fn allowed() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a set of plain bits, for which all zeros is empty.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is as large as it is said to be; 0 is the calling thread.
        if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } == 0 {
            // SAFETY: every number is below the set's size.
            return (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect();
        }
    }
    Vec::new()
}

/// Keeps the calling thread on one core; false where the system does not.
pub fn stay_on(core: usize) -> bool {
    #[cfg(target_os = "linux")]
    if core < libc::CPU_SETSIZE as usize {
        // SAFETY: a set of plain bits, for which all zeros is empty.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the core is below the set's size; the set is as large as it is said to be; 0 is the calling thread.
        return unsafe {
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) == 0
        };
    }
    let _ = core;
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_thread_stays_on_its_core_and_others_are_free() {
        let before = super::allowed();
        let last = *before.last().expect("a core to run on");
        let pinned = std::thread::spawn(move || (super::stay_on(last), super::allowed()));
        assert_eq!(pinned.join().expect("the thread ends"), (true, vec![last]));
        assert_eq!(super::allowed(), before);
        assert!(!super::stay_on(usize::MAX), "no such core");
    }
}
