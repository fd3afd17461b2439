//! What was acknowledged survives a killed process, a torn log and a disk that was full for a while.

use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use tunegate::{
    journal::{Completion, Health, Journal, JournalError},
    terms::Ending,
};

use super::{Desk, choice, fact};

/// Names the folder in which this very test should play the other process.
const ROLE: &str = "JOURNAL_TEST_FOLDER";

/// Starts this binary again, for one test, in the role of the process that will not survive.
fn other_self(test: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn every_acknowledged_answer_survives_being_killed() {
    if let Some(folder) = std::env::var_os(ROLE) {
        return record_until_killed(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..10 {
        let mut child =
            other_self("journal::durability::every_acknowledged_answer_survives_being_killed", folder.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            if let Some(id) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged.push(id.to_owned());
                seen += 1;
            }
            // Each round dies at another place; what was acknowledged until then is still in the pipe.
            if seen == 1 + 17 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let desk = Desk::at(folder.path());
        runtime.block_on(async {
            for id in &acknowledged {
                let row = desk.journal.get(id).await.unwrap();
                assert_eq!(row, Some(fact(id)), "round {round}");
            }
        });
    }
    assert!(acknowledged.len() > 10 * 9 / 2 * 17, "{}", acknowledged.len());
}

fn record_until_killed(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let journal = Desk::at(folder).journal;
    let tasks: Vec<_> = (0..8).map(|_| runtime.spawn(record_for_ever(journal.clone()))).collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
}

async fn record_for_ever(journal: Journal) {
    loop {
        let id = format!("chatcmpl-{:016x}", getrandom::u64().unwrap());
        journal.reserve(1).unwrap().record(fact(&id)).await.unwrap();
        if writeln!(std::io::stdout(), "acknowledged {id}").is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn what_nobody_waits_for_is_written_before_the_journal_goes() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    for n in 0..50 {
        drop(desk.journal.reserve(1).unwrap().record(fact(&format!("chatcmpl-{n}"))));
    }
    drop(desk);
    let desk = Desk::at(folder.path());
    for n in 0..50 {
        assert!(desk.journal.get(&format!("chatcmpl-{n}")).await.unwrap().is_some(), "{n}");
    }
}

#[tokio::test]
async fn a_log_torn_anywhere_loses_no_earlier_answer_and_leaves_no_half_one() {
    let folder = tempfile::tempdir().unwrap();
    let (database, log) = (folder.path().join("tunegate.db"), folder.path().join("tunegate.db-wal"));
    let desk = Desk::at(folder.path());
    desk.record(fact("first")).await;
    let after_first = fs::read(&log).unwrap().len();
    let torn = Completion { choices: vec![choice(0), choice(1)], ..fact("torn") };
    desk.record(torn.clone()).await;
    let (database, log) = (fs::read(&database).unwrap(), fs::read(&log).unwrap());
    assert!(log.len() > after_first);
    drop(desk);

    let mut crashes: Vec<Vec<u8>> = (after_first..=log.len()).step_by(1021).map(|len| log[..len].to_vec()).collect();
    for at in (after_first..log.len()).step_by(2039) {
        let mut flipped = log.clone();
        flipped[at] ^= 0x10;
        crashes.push(flipped);
    }
    crashes.push(log);
    let mut survivors = 0;
    for crash in &crashes {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tunegate.db"), &database).unwrap();
        fs::write(folder.path().join("tunegate.db-wal"), crash).unwrap();
        let desk = Desk::at(folder.path());
        assert_eq!(desk.journal.get("first").await.unwrap(), Some(fact("first")), "{} bytes of log", crash.len());
        if let Some(found) = desk.journal.get("torn").await.unwrap() {
            assert_eq!(found, torn);
            survivors += 1;
        }
        desk.record(fact("afterwards")).await;
    }
    assert!(survivors >= 1, "the whole log has both");
    assert!(survivors < crashes.len() / 2, "most of these logs are torn: {survivors} of {}", crashes.len());
}

#[cfg(unix)]
#[test]
fn a_full_disk_fails_receipts_refuses_requests_and_is_recovered_from() {
    const TEST: &str = "journal::durability::a_full_disk_fails_receipts_refuses_requests_and_is_recovered_from";
    if let Some(folder) = std::env::var_os(ROLE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        return runtime.block_on(run_out_of_room(Path::new(&folder)));
    }
    // The limit on file sizes holds for a whole process, so this one plays in a process of its own.
    let folder = tempfile::tempdir().unwrap();
    let finished = other_self(TEST, folder.path()).wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert!(finished.status.success() && told.contains("recovered"), "{told}");
}

#[cfg(unix)]
async fn run_out_of_room(folder: &Path) {
    let desk = Desk::at(folder);
    desk.record(fact("before")).await;
    let log_bytes = fs::metadata(folder.join("tunegate.db-wal")).unwrap().len();
    let mut slot = desk.journal.reserve(2).unwrap();
    let mut health = desk.journal.watch_health();
    let room = limit_file_size(log_bytes + 8192);

    let failed = slot.record(large("lost")).await;
    assert!(matches!(failed, Err(JournalError::Write { .. })), "{failed:?}");
    assert!(matches!(desk.journal.health(), Health::Down { .. }));
    assert!(matches!(desk.journal.reserve(1), Err(JournalError::Down { .. })));
    assert_eq!(desk.metrics.record_failures.get(), 1);
    assert!(slot.record(large("lost too")).await.is_err(), "an admitted answer is still accepted, and still told");
    let read = desk.journal.get("before").await.unwrap();
    assert_eq!(read, Some(fact("before")), "reading goes on");

    health.mark_unchanged();
    limit_file_size(room);
    health.wait_for(|health| *health == Health::Up).await.unwrap();
    desk.record(large("after")).await;
    let told = desk.journal.get("lost").await.unwrap().unwrap();
    assert_eq!(told.choices[0].ending, Ending::Failed, "its client got an error");
    assert_eq!(desk.journal.get("after").await.unwrap(), Some(large("after")));
    println!("recovered");
}

/// Two megabytes of answer.
fn large(id: &str) -> Completion {
    let mut large = fact(id);
    large.choices[0].text = Some("x".repeat(2 << 20));
    large
}

/// Sets how large a file this process may write; larger writes fail as they would on a full disk. Returns the limit
/// before.
#[cfg(unix)]
fn limit_file_size(bytes: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain calls with a valid pointer; ignoring SIGXFSZ turns the signal into an error of `write`.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        let before = limit.rlim_cur;
        limit.rlim_cur = bytes;
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        before
    }
}
