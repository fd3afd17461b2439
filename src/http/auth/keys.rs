//! API keys: from the command line or a file, kept and compared as SHA-256 digests.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    config::ServerConfig,
    engine::KvSalt,
    gateway::Caller,
    terms::{Digest, RecordPolicy},
};

/// What a key may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Asks questions and reads its own stored completions.
    #[default]
    App,
    /// Reads what was recorded, to review it.
    Reviewer,
    /// Changes what is served.
    Admin,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Reviewer => "reviewer",
            Self::Admin => "admin",
        }
    }
}

/// One key. The secret itself is not kept.
#[derive(Clone, Debug)]
pub struct Key {
    pub name: String,
    pub role: Role,
    /// The names that it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// At most this is recorded of its requests.
    pub record: Option<RecordPolicy>,
    hash: Digest,
    salt: KvSalt,
}

impl Key {
    /// How the gateway knows this key. The salt keeps its KV cache to itself.
    pub fn caller(&self) -> Caller {
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(&self.name));
        Caller {
            key: Some(self.name.clone()),
            salt: self.salt,
            tenant: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            models: self.models.clone(),
            record: self.record,
        }
    }
}

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{path}: {error}")]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("an API key may not be empty")]
    Empty,
    #[error("'{0}' is no name for a key: 1 to 64 letters, digits, '.', '_' and '-'")]
    Name(String),
    #[error("the key '{name}' has no SHA-256 in hex as its hash: {reason}")]
    Hash { name: String, reason: String },
    #[error("two keys are named '{0}'")]
    NameTwice(String),
    #[error("the keys '{0}' and '{1}' are the same")]
    SecretTwice(String, String),
    #[error("the system gave no random number: {0}")]
    Random(getrandom::Error),
}

/// A file of keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    /// SHA-256 of the secret, in hex: `printf %s SECRET | sha256sum`.
    hash: String,
    #[serde(default)]
    role: Role,
    models: Option<Vec<String>>,
    record: Option<RecordPolicy>,
}

/// Every key of a server.
#[derive(Clone, Debug)]
pub struct Keys {
    keys: Vec<Key>,
    loopback_only: bool,
    /// Of `--admin-key`: opens the routes that change what is served, and those alone need it.
    admin: Option<Key>,
    admin_port: bool,
    admin_unauthenticated: bool,
}

impl Keys {
    /// Reads the keys of `--api-key` (named `key-1`, `key-2`, …), of the keys file, and of `--admin-key` (named `admin`).
    /// Those of `--api-key` have the role admin where there is no key for admins.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn load(server: &ServerConfig) -> Result<Self, KeysError> {
        let loopback_only = server.listen.ip().is_loopback();
        let (file, admin) = (server.keys_file.as_deref(), &server.admin);
        let keys = Self::read(&server.api_keys, file, admin.key.as_deref(), loopback_only)?;
        Ok(Self { admin_port: admin.port.is_some(), admin_unauthenticated: admin.unauthenticated, ..keys })
    }

    /// As [`Keys::load`], from settings that are not settled yet.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn read(
        api_keys: &[String],
        file: Option<&Path>,
        admin_key: Option<&str>,
        loopback_only: bool,
    ) -> Result<Self, KeysError> {
        let entry = |name: String, secret: &str, role| KeyEntry {
            name,
            hash: Digest::of(secret.as_bytes()).to_string(),
            role,
            models: None,
            record: None,
        };
        let role = if admin_key.is_some() { Role::App } else { Role::Admin };
        let mut keys = Vec::new();
        for (index, secret) in api_keys.iter().enumerate() {
            if secret.trim().is_empty() {
                return Err(KeysError::Empty);
            }
            keys.push(entry(format!("key-{}", index + 1), secret, role));
        }
        if let Some(path) = file {
            keys.extend(read(path)?);
        }
        let with_admin = admin_key.is_some();
        keys.extend(admin_key.map(|secret| entry("admin".to_owned(), secret, Role::Admin)));
        let mut all = Self::from_entries(keys, loopback_only)?;
        if with_admin {
            all.admin = all.keys.pop();
        }
        Ok(all)
    }

    fn from_entries(entries: Vec<KeyEntry>, loopback_only: bool) -> Result<Self, KeysError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(KeysError::Random)?;
        let mut names = HashSet::new();
        let mut keys: Vec<Key> = Vec::with_capacity(entries.len());
        for entry in entries {
            if !is_name(&entry.name) {
                return Err(KeysError::Name(entry.name.escape_debug().take(64).collect()));
            }
            if !names.insert(entry.name.clone()) {
                return Err(KeysError::NameTwice(entry.name));
            }
            let hash = Digest::parse(&entry.hash.to_ascii_lowercase())
                .map_err(|error| KeysError::Hash { name: entry.name.clone(), reason: error.to_string() })?;
            if let Some(same) = keys.iter().find(|key| key.hash == hash) {
                return Err(KeysError::SecretTwice(same.name.clone(), entry.name));
            }
            keys.push(Key {
                salt: salt(&secret, &entry.name),
                name: entry.name,
                role: entry.role,
                models: entry.models,
                record: entry.record,
                hash,
            });
        }
        Ok(Self { keys, loopback_only, admin: None, admin_port: false, admin_unauthenticated: false })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether only this machine can connect.
    pub fn loopback_only(&self) -> bool {
        self.loopback_only
    }

    /// Whether `--admin-key` is given.
    pub fn has_admin_key(&self) -> bool {
        self.admin.is_some()
    }

    /// Whether routes that change what is served have a port of their own.
    pub fn has_admin_port(&self) -> bool {
        self.admin_port
    }

    /// Whether everybody who can connect may change what is served.
    pub fn admin_unauthenticated(&self) -> bool {
        self.admin_unauthenticated
    }

    /// The key with this secret. Every key is compared, each in constant time.
    pub fn find(&self, secret: &[u8]) -> Option<&Key> {
        let hash = Digest::of(secret);
        self.keys.iter().chain(&self.admin).fold(None, |found, key| {
            let same = bool::from(key.hash.as_bytes().ct_eq(hash.as_bytes()));
            if same { Some(key) } else { found }
        })
    }
}

fn read(path: &Path) -> Result<Vec<KeyEntry>, KeysError> {
    let text = std::fs::read_to_string(path).map_err(|error| KeysError::Unreadable { path: path.to_owned(), error })?;
    // The error's own words repeat a line of the file, which holds hashes: only its place and reason are told.
    let file: KeysFile = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        KeysError::Malformed { path: path.to_owned(), reason: format!("line {line}: {}", error.message()) }
    })?;
    Ok(file.key)
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// A name's salt under a secret that lives as long as the server: HMAC-SHA-256 (RFC 2104), for a secret of 32 bytes.
fn salt(secret: &[u8; 32], name: &str) -> KvSalt {
    let keyed = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(secret).for_each(|(byte, secret)| *byte ^= secret);
        Sha256::new().chain_update(block)
    };
    let inner = keyed(0x36).chain_update(name).finalize();
    KvSalt(keyed(0x5c).chain_update(inner).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, secret: &str) -> KeyEntry {
        let hash = Digest::of(secret.as_bytes()).to_string();
        KeyEntry { name: name.into(), hash, role: Role::App, models: None, record: None }
    }

    #[test]
    fn a_key_is_found_by_its_secret_alone() {
        let keys = Keys::from_entries(vec![entry("shop", "one"), entry("bot", "two")], true).unwrap();
        assert_eq!(keys.find(b"two").map(|key| key.name.as_str()), Some("bot"));
        for bad in [b"".as_slice(), b"on", b"onee", b"shop"] {
            assert!(keys.find(bad).is_none());
        }
    }

    #[test]
    fn a_key_for_admins_leaves_the_others_to_apps() {
        let read = |admin| Keys::read(&["one".to_owned()], None, admin, true);
        let role = |keys: &Keys, secret: &[u8]| keys.find(secret).map(|key| (key.name.clone(), key.role));
        let alone = read(None).unwrap();
        assert_eq!(role(&alone, b"one"), Some(("key-1".to_owned(), Role::Admin)));
        let both = read(Some("root")).unwrap();
        assert_eq!(role(&both, b"one"), Some(("key-1".to_owned(), Role::App)));
        assert_eq!(role(&both, b"root"), Some(("admin".to_owned(), Role::Admin)));
        assert!(matches!(read(Some("one")), Err(KeysError::SecretTwice(..))));
        let only = Keys::read(&[], None, Some("root"), true).unwrap();
        assert!(only.is_empty() && only.has_admin_key(), "asking needs no key");
    }

    #[test]
    fn keys_have_salts_and_tenants_of_their_own() {
        let keys = Keys::from_entries(vec![entry("shop", "one"), entry("bot", "two")], true).unwrap();
        let callers = [keys.find(b"one").unwrap().caller(), keys.find(b"two").unwrap().caller()];
        assert_ne!(callers[0].salt, callers[1].salt);
        assert_ne!(callers[0].tenant, callers[1].tenant);
        assert_ne!(callers[0].salt, KvSalt::default(), "a key's cache is not everybody's");
        let again = Keys::from_entries(vec![entry("shop", "one")], true).unwrap();
        assert_ne!(again.find(b"one").unwrap().caller().salt, callers[0].salt, "the server's secret is part of it");
    }

    #[test]
    fn a_file_of_keys_is_read_or_refused_without_repeating_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Keys::load(&ServerConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                served_names: Vec::new(),
                api_keys: vec!["plain".into()],
                keys_file: Some(path.clone()),
                admin: Default::default(),
                shutdown_timeout: std::time::Duration::ZERO,
            })
        };
        let hash = Digest::of(b"secret").to_string();
        let good = format!(
            "[[key]]\nname = 'shop'\nhash = '{hash}'\nrole = 'reviewer'\nmodels = ['poet']\nrecord = 'metadata'\n"
        );
        let keys = load(&good).unwrap();
        let shop = keys.find(b"secret").unwrap();
        assert_eq!((shop.role, shop.record), (Role::Reviewer, Some(RecordPolicy::Metadata)));
        assert_eq!(shop.models.as_deref(), Some(["poet".to_owned()].as_slice()));
        assert_eq!(keys.find(b"plain").unwrap().name, "key-1");

        assert!(matches!(load(&format!("{good}{good}")), Err(KeysError::NameTwice(name)) if name == "shop"));
        let same = format!("{good}[[key]]\nname = 'bot'\nhash = '{hash}'\n");
        assert!(matches!(load(&same), Err(KeysError::SecretTwice(one, other)) if one == "shop" && other == "bot"));
        assert!(matches!(load("[[key]]\nname = 'a b'\nhash = ''\n"), Err(KeysError::Name(_))));
        assert!(matches!(load("[[key]]\nname = 'a'\nhash = 'x'\n"), Err(KeysError::Hash { .. })));
        for bad in
            ["[[key]]\nname = 'a'\n", "[[keys]]", &format!("[[key]]\nname = 'a'\nhash = '{hash}'\nrole = 'king'\n")]
        {
            let error = load(bad).unwrap_err();
            assert!(matches!(error, KeysError::Malformed { .. }), "{error}");
            assert!(!error.to_string().contains(&hash), "{error}");
        }
    }
}
