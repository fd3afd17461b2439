//! One adapter as it stands at a source: its files, how large they are, and what they are checked against.

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::{SourceError, hub::HubFiles, objects::ObjectFiles};
use crate::terms::Digest;

/// An adapter at a source, at one moment.
pub struct Remote {
    /// `NAME:object`, on a hub with the commit, as it is shown and recorded.
    pub address: String,
    /// Tells this state of it from every other, where the address does not: a digest over what the source says of each file.
    pub state: Option<String>,
    pub files: Vec<RemoteFile>,
    pub reader: Reader,
}

/// One of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub name: &'static str,
    /// Where it is, as its reader has it.
    pub at: String,
    pub size: u64,
    /// What the source calls this very content, where it has a word for it.
    pub tag: Option<String>,
    pub proof: Proof,
}

/// What a file's bytes are compared with once they are all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Sha256(Digest),
    /// What S3 gives for an object that came in one piece.
    Md5([u8; 16]),
    /// What git names a file's content by: SHA-1 over `blob <length>\0` and the bytes.
    GitBlob([u8; 20]),
    /// Its length alone.
    Length,
}

/// Who reads the files.
pub enum Reader {
    Objects(ObjectFiles),
    Hub(HubFiles),
}

pub type Pieces = BoxStream<'static, Result<Bytes, SourceError>>;

impl Remote {
    /// A file's bytes from `offset` on.
    ///
    /// # Errors
    /// [`SourceError`], now or while the pieces come.
    pub async fn pieces(&self, file: &RemoteFile, offset: u64) -> Result<Pieces, SourceError> {
        match &self.reader {
            Reader::Objects(objects) => objects.pieces(file, offset).await,
            Reader::Hub(hub) => hub.pieces(file, offset).await,
        }
    }

    /// Where it is and in which state, in one text.
    pub fn origin(&self) -> String {
        match &self.state {
            Some(state) => format!("{}#{state}", self.address),
            None => self.address.clone(),
        }
    }

    /// A name for what is fetched: the same for the same content of the same files.
    pub fn key(&self) -> Digest {
        let mut text = format!("{}\n", self.origin());
        for file in &self.files {
            text.push_str(&format!("{} {} {:?} {:?}\n", file.name, file.size, file.tag, file.proof));
        }
        Digest::of(text.as_bytes())
    }
}

/// `bytes` of hex digits, in either case.
pub fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}
