//! Tells a folder that is all there from one that is still being copied.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use serde::de::IgnoredAny;

use crate::{
    adapters::folder::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
    terms::Digest,
};

/// What the system says of a folder's files, links followed: equal stamps before and after reading mean that what was
/// read is of one moment, also where a link was turned to another folder meanwhile, as Kubernetes does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<FileStamp>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    name: &'static str,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of the last change of content, and of anything.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of what is there. A file that is not there is left out.
    ///
    /// # Errors
    /// If a file is there and cannot be asked about.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for name in [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE] {
            match std::fs::metadata(folder.join(name)) {
                Ok(found) => files.push(FileStamp {
                    name,
                    device: found.dev(),
                    inode: found.ino(),
                    bytes: found.len(),
                    modified: (found.mtime(), found.mtime_nsec()),
                    changed: (found.ctime(), found.ctime_nsec()),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(files))
    }

    /// The stamp in one word.
    pub fn state(&self) -> String {
        Digest::of(format!("{:?}", self.0).as_bytes()).short()
    }

    /// Whether there is a configuration at all.
    pub fn is_adapter(&self) -> bool {
        self.0.iter().any(|file| file.name == CONFIG_FILE)
    }
}

/// The longest header that is looked into; a longer one is for the reader to refuse.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Why a folder is not all there yet, if it is not. What is there in full and wrong is for the reader to refuse.
pub fn what_is_missing(folder: &Path) -> Option<String> {
    match config_is_cut(&folder.join(CONFIG_FILE)) {
        Ok(false) => {}
        Ok(true) => return Some(format!("{CONFIG_FILE} ends before its end")),
        Err(error) => return Some(format!("{CONFIG_FILE}: {}", error.kind())),
    }
    let weights = folder.join(WEIGHTS_FILE);
    match weights_are_cut(&weights) {
        Ok(None) => None,
        Ok(Some((got, told))) => Some(format!("{WEIGHTS_FILE} has {got} bytes, and its header tells of {told}")),
        // Another format has another name; that there are none is the reader's to say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{WEIGHTS_FILE}: {}", error.kind())),
    }
}

/// A plain file, opened. A pipe would be waited for; what is no plain file is for the reader to refuse.
fn plain(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

fn config_is_cut(path: &Path) -> io::Result<bool> {
    let Some(file) = plain(path)? else { return Ok(false) };
    let mut text = Vec::new();
    file.take(MAX_HEADER_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice::<IgnoredAny>(&text).is_err_and(|error| error.is_eof()))
}

/// Bytes that are there and bytes that the header tells of, where fewer are there.
fn weights_are_cut(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let Some(mut file) = plain(path)? else { return Ok(None) };
    let got = file.metadata()?.len();
    let mut length = [0; 8];
    if got < 8 {
        return Ok(Some((got, 8)));
    }
    file.read_exact(&mut length)?;
    let header = u64::from_le_bytes(length);
    // Room was made for the file and nothing written to it yet.
    if header == 0 {
        return Ok(Some((0, got)));
    }
    if header > MAX_HEADER_BYTES {
        return Ok(None);
    }
    let begin = 8 + header;
    if got < begin {
        return Ok(Some((got, begin)));
    }
    let mut text = Vec::new();
    file.take(header).read_to_end(&mut text)?;
    let Ok(tensors) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text) else {
        return Ok(None);
    };
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    let told = begin.saturating_add(ends.max().unwrap_or(0));
    Ok((got < told).then_some((got, told)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file of one tensor of 8 bytes.
    fn weights() -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header, &[7; 8]].concat()
    }

    #[test]
    fn a_folder_is_whole_at_its_last_byte_and_at_none_before() {
        let folder = tempfile::tempdir().unwrap();
        let (config, whole) = (br#"{"r": 8}"#, weights());
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write(WEIGHTS_FILE, &whole);
        for end in 0..config.len() {
            write(CONFIG_FILE, &config[..end]);
            assert!(what_is_missing(folder.path()).is_some(), "{end} bytes of the configuration");
        }
        write(CONFIG_FILE, config);
        for end in 0..whole.len() {
            write(WEIGHTS_FILE, &whole[..end]);
            assert!(what_is_missing(folder.path()).is_some(), "{end} bytes of the weights");
        }
        write(WEIGHTS_FILE, &vec![0; whole.len()]);
        assert!(what_is_missing(folder.path()).is_some(), "room that nothing was written to");
        write(WEIGHTS_FILE, &whole);
        assert_eq!(what_is_missing(folder.path()), None);
    }

    #[test]
    fn what_is_there_and_wrong_is_left_to_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write(CONFIG_FILE, b"not json");
        assert_eq!(what_is_missing(folder.path()), None, "no weights at all");
        write(WEIGHTS_FILE, &[255; 64]);
        assert_eq!(what_is_missing(folder.path()), None, "no safetensors");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            let made = std::process::Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap();
            assert!(made.success());
        }
        assert_eq!(what_is_missing(folder.path()), None);
    }

    #[test]
    fn a_link_that_is_turned_elsewhere_is_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
            std::fs::write(folder.path().join(version).join(CONFIG_FILE), "{}").unwrap();
        }
        let link = folder.path().join("..data");
        let turn = |to: &str| {
            std::os::unix::fs::symlink(to, folder.path().join("next")).unwrap();
            std::fs::rename(folder.path().join("next"), &link).unwrap();
            Stamp::of(&link).unwrap()
        };
        let (first, second) = (turn("v1"), turn("v2"));
        assert_ne!(first, second);
        assert_eq!(first, turn("v1"));
        assert!(first.is_adapter());
        assert!(!Stamp::of(folder.path()).unwrap().is_adapter());
    }
}
