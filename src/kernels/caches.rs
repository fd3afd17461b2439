//! The processor's caches and the memory behind them, as the system tells of them.

use std::{fs, path::Path};

/// Where Linux describes the caches of one core.
const CACHES: &str = "/sys/devices/system/cpu/cpu0/cache";

/// How many times the last-level cache is surely read from memory, whatever of it the cache keeps from pass to pass.
const TIMES: usize = 4;

/// What is taken to be beyond every cache where the system does not tell of them.
const UNTOLD: usize = 256 << 20;

/// The part of the free memory that a measurement may take.
const SHARE: usize = 4;

/// Bytes of the cache before memory; `None` where the system does not tell.
pub fn last_level() -> Option<usize> {
    last_level_in(Path::new(CACHES))
}

fn last_level_in(folder: &Path) -> Option<usize> {
    let caches = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let cache = entry.ok()?.path();
        let said = |name: &str| fs::read_to_string(cache.join(name)).ok();
        let level: usize = said("level")?.trim().parse().ok()?;
        Some((level, bytes(said("size")?.trim())?))
    });
    caches.max().map(|(_, bytes)| bytes)
}

/// `48K`, `32M`.
fn bytes(size: &str) -> Option<usize> {
    let (number, unit) = size.split_at(size.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(size.len()));
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

/// As many bytes as no cache holds a part of that matters; `None` if that is more than a measurement may take of the free memory.
pub fn beyond() -> Option<usize> {
    let wanted = last_level().map_or(UNTOLD, |bytes| UNTOLD.max(TIMES * bytes));
    free().is_none_or(|free| wanted <= free / SHARE).then_some(wanted)
}

/// Bytes of memory that this process may still take; `None` where the system does not tell.
fn free() -> Option<usize> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok()?.trim().parse().ok();
    let group = group("max").zip(group("current")).map(|(most, taken): (usize, usize)| most.saturating_sub(taken));
    system.into_iter().chain(group).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn available(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_is_the_highest_whatever_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(last_level_in(folder.path()), None);
        for (index, level, size) in
            [(0, "1\n", "48K\n"), (1, "3\n", "266240K\n"), (2, "2\n", "2M\n"), (3, "4\n", "?\n")]
        {
            let cache = folder.path().join(format!("index{index}"));
            fs::create_dir(&cache).expect("a folder");
            fs::write(cache.join("level"), level).expect("written");
            fs::write(cache.join("size"), size).expect("written");
        }
        assert_eq!(last_level_in(folder.path()), Some(260 << 20));
        assert_eq!(last_level_in(&folder.path().join("nothing")), None);
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:          100 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available(text), Some(20_000_000 << 10));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
