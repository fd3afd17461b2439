/// Makes the calling thread yield to every thread of normal priority. For threads of one's own only: an unprivileged
/// process cannot raise it again. Without effect where the system counts priorities by process.
pub fn lower_thread_priority() {
    #[cfg(target_os = "linux")]
    {
        const LOWEST: libc::c_int = 19;
        // SAFETY: takes no pointers; 0 is the calling thread, and lowering is always allowed.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn only_the_calling_thread_steps_back() {
        // SAFETY: takes no pointers.
        let own = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = own();
        let lowered = std::thread::spawn(move || {
            super::lower_thread_priority();
            own()
        });
        assert_eq!(lowered.join().ok(), Some(19));
        assert_eq!(own(), before);
    }
}
