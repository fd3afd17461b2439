/// About a tenth of a core on which a thread of normal priority is always busy: little, but not nothing, since somebody
/// waits for what is done in the background.
#[cfg(target_os = "linux")]
const NICENESS: libc::c_int = 10;

/// Makes the calling thread give way to threads of normal priority. For threads of one's own only: an unprivileged
/// process cannot raise it again. Without effect where the system counts priorities by process.
pub fn lower_thread_priority() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: takes no pointers; 0 is the calling thread, and lowering is always allowed.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
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
        assert_eq!(lowered.join().ok(), Some(super::NICENESS));
        assert_eq!(own(), before);
    }
}
