//! A server that is killed at any moment, or loses its power, in the middle of loads, replacements, rollbacks and unloads:
//! a restart serves what was acknowledged last, or that and the one change that was under way, and nothing else.

mod disk;
mod names;
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Duration,
};

use self::{
    disk::{Cut, Disk, NOTHING_FORGOTTEN},
    names::{Name, Version, versions},
    server::Server,
};

/// How often a server is ended: a tenth of what `make proof` does, unless it says otherwise.
fn rounds() -> usize {
    std::env::var("TUNEGATE_TEST_KILLS").map_or(10, |count| count.parse().expect("TUNEGATE_TEST_KILLS is a number"))
}

/// Reproducible chance: xorshift.
pub struct Chance(u64);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }
}

/// A data directory, a folder of adapters to load from, and what the names of the server are known to be.
struct Place {
    folder: tempfile::TempDir,
    versions: Vec<Version>,
    names: Vec<Name>,
}

const NAMES: [&str; 3] = ["poet", "team/lawyer", "clerk"];
/// A server is ready within some 100 ms; its changes take some 10 ms each.
const LONGEST_MS: usize = 500;

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("none")).expect("made");
        fs::create_dir(folder.path().join("data")).expect("made");
        let mut versions = versions(&folder.path().join("root"));
        let elsewhere = Server::start(&folder.path().join("elsewhere"), folder.path(), |_| {});
        elsewhere.learn(&mut versions);
        drop(elsewhere);
        Self { folder, versions, names: NAMES.map(Name::new).into() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// One life of the server: what it serves is checked, then its names are changed from all sides until it is killed at
    /// some moment, which may be before it is ready.
    fn live_and_die(&mut self, chance: &mut Chance, prepare: impl Fn(&mut Command)) -> Result<(), String> {
        let delay = Duration::from_micros((chance.below(LONGEST_MS * 1000) + 1) as u64);
        if chance.below(5) == 0 {
            Server::spawn(&self.data(), self.folder.path(), &prepare).kill_after(delay);
            return Ok(());
        }
        let mut server = Server::start(&self.data(), self.folder.path(), &prepare);
        for name in &mut self.names {
            server.settle(name, &self.versions)?;
        }
        let seeds: Vec<u64> = self.names.iter().map(|_| chance.below(usize::MAX >> 1) as u64).collect();
        let url = server.url().to_owned();
        let (versions, faults) = (&self.versions, Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for (name, seed) in self.names.iter_mut().zip(seeds) {
                let (url, faults) = (&url, &faults);
                scope.spawn(move || {
                    if let Err(fault) = name.change_until_it_dies(url, versions, &mut Chance::of(seed)) {
                        faults.lock().expect("whole").push(fault);
                    }
                });
            }
            server.kill_after(delay);
        });
        let faults = faults.into_inner().expect("whole");
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    /// A last restart, which is not interrupted.
    fn settle(&mut self, prepare: impl Fn(&mut Command)) -> Result<(), String> {
        let server = Server::start(&self.data(), self.folder.path(), prepare);
        self.names.iter_mut().try_for_each(|name| server.settle(name, &self.versions))
    }

    fn changes(&self) -> usize {
        self.names.iter().map(Name::changes).sum()
    }
}

#[test]
fn a_server_that_is_killed_at_any_moment_serves_what_was_acknowledged() {
    let mut place = Place::new();
    for round in 0..rounds() {
        let died = place.live_and_die(&mut Chance::of(round as u64 + 1), |_| {});
        died.unwrap_or_else(|fault| panic!("round {round}: {fault}"));
    }
    place.settle(|_| {}).unwrap_or_else(|fault| panic!("at the end: {fault}"));
    assert!(place.changes() > 3 * rounds(), "only {} changes were made", place.changes());
    println!("{} kills, {} changes acknowledged", rounds(), place.changes());
}

#[test]
fn a_server_that_loses_its_power_serves_what_was_acknowledged() {
    let mut place = Place::new();
    let disk = Disk::of(&place.data(), &place.folder.path().join("disk"));
    for round in 0..rounds() {
        let chance = &mut Chance::of(round as u64 + 1000);
        let died = place.live_and_die(chance, |command| disk.put_under(command, NOTHING_FORGOTTEN));
        died.unwrap_or_else(|fault| panic!("round {round}: {fault}"));
        disk.cut(Cut::of(round), chance);
    }
    let settled = place.settle(|command| disk.put_under(command, NOTHING_FORGOTTEN));
    settled.unwrap_or_else(|fault| panic!("at the end: {fault}"));
    assert!(place.changes() > 3 * rounds(), "only {} changes were made", place.changes());
    println!("{} power cuts, {} changes acknowledged", rounds(), place.changes());
}

/// Loads one version on a disk that forgets what has `forgotten` in its path, cuts the power, and looks.
fn after_a_missing_sync(forgotten: &str, cut: Cut) -> Result<(), String> {
    let mut place = Place::new();
    let disk = Disk::of(&place.data(), &place.folder.path().join("disk"));
    // The database and its folders are there from before: only the load is at stake.
    drop(Server::start(&place.data(), place.folder.path(), |_| {}));
    let (version, name) = (&place.versions[0], &mut place.names[0]);
    let server = Server::start(&place.folder.path().join("data"), place.folder.path(), |command| {
        disk.put_under(command, forgotten);
    });
    name.load(server.url(), 0, version)?;
    drop(server);
    disk.cut(cut, &mut Chance::of(1));
    place.settle(|_| {})
}

#[test]
fn a_sync_that_is_missing_anywhere_would_be_noticed() {
    for cut in [Cut::AllLost, Cut::NamesSurvive, Cut::ContentsSurvive] {
        after_a_missing_sync(NOTHING_FORGOTTEN, cut).unwrap_or_else(|fault| panic!("nothing is missing: {fault}"));
    }
    for (forgotten, cut) in [
        ("adapter_model.safetensors", Cut::NamesSurvive),
        ("adapter_config.json", Cut::NamesSurvive),
        ("adapter.toml", Cut::NamesSurvive),
        (".unfinished-", Cut::AllLost),
        ("/vault", Cut::AllLost),
        ("tunegate.db", Cut::AllLost),
    ] {
        let noticed = after_a_missing_sync(forgotten, cut);
        assert!(noticed.is_err(), "{forgotten} is not synced, and nobody sees it");
    }
}

/// Names the folder in which this very test plays the program that loses its power.
const ROLE: &str = "CRASH_TEST_FOLDER";

#[test]
fn what_a_program_has_not_synced_is_undone_by_a_power_cut() {
    const TEST: &str = "crash::what_a_program_has_not_synced_is_undone_by_a_power_cut";
    if let Some(folder) = std::env::var_os(ROLE) {
        return write_and_die(Path::new(&folder));
    }
    let read = |path: &Path, name: &str| fs::read_to_string(path.join(name)).ok();
    for (cut, expected) in [
        (Cut::AllLost, [Some("old"), Some("synced"), Some("old"), None, None, Some("there"), Some("kept")]),
        (Cut::NamesSurvive, [Some("old"), Some("synced"), None, Some("old"), Some(""), None, Some("kept")]),
        (Cut::ContentsSurvive, [Some("new"), Some("unsynced"), Some("old"), None, None, Some("there"), Some("kept")]),
    ] {
        let place = tempfile::tempdir().expect("a folder");
        let (data, disk) = (place.path().join("data"), place.path().join("disk"));
        fs::create_dir(&data).expect("made");
        for (name, text) in [("overwritten", "old"), ("moved", "old"), ("removed", "there")] {
            fs::write(data.join(name), text).expect("written");
        }
        let disk = Disk::of(&data, &disk);
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args([TEST, "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, &data);
        disk.put_under(&mut command, NOTHING_FORGOTTEN);
        assert!(!command.output().expect("it runs").status.success(), "it dies");
        disk.cut(cut, &mut Chance::of(1));
        let names = ["overwritten", "twice", "moved", "moved-away", "created", "removed", "below/kept"];
        assert_eq!(names.map(|name| read(&data, name)), expected.map(|text| text.map(str::to_owned)), "{cut:?}");
    }
}

fn write_and_die(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("written");
    let sync = |name: &str| fs::File::open(folder.join(name)).and_then(|file| file.sync_all()).expect("synced");
    fs::create_dir(folder.join("below")).expect("made");
    write("below/kept", "kept");
    sync("below/kept");
    sync("below");
    write("twice", "synced");
    sync("twice");
    sync("");
    write("twice", "unsynced");
    write("overwritten", "new");
    fs::rename(folder.join("moved"), folder.join("moved-away")).expect("moved");
    write("created", "new");
    fs::remove_file(folder.join("removed")).expect("removed");
    std::process::abort();
}

#[test]
fn a_torn_cut_leaves_each_page_as_it_was_or_as_it_is() {
    let place = tempfile::tempdir().expect("a folder");
    let data = place.path().join("data");
    fs::create_dir(&data).expect("made");
    fs::write(data.join("pages"), [b'o'; 64 << 10]).expect("written");
    let disk = Disk::of(&data, &place.path().join("disk"));
    let mut command = Command::new("true");
    disk.put_under(&mut command, NOTHING_FORGOTTEN);
    assert!(command.status().expect("it runs").success());
    fs::write(data.join("pages"), [b'n'; 64 << 10]).expect("written");
    disk.cut(Cut::Torn, &mut Chance::of(3));
    let pages = fs::read(data.join("pages")).expect("there");
    let whole = |byte: u8| pages.chunks(4096).filter(|page| page.iter().all(|b| *b == byte)).count();
    assert!(whole(b'o') + whole(b'n') == pages.len().div_ceil(4096), "no page is mixed");
}
