//! Whoever answers: a server, or this process where there is none.

use std::{io::Write, path::PathBuf, sync::Arc};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{
    app,
    cli::operator::{Server, escaped},
    config::{RecordConfig, RetentionConfig, Settings},
    data_dir::DataDir,
    feedback::export::{self, Shape, Wanted},
    http::{
        admin::flags::export_query,
        journal::{Asked, page},
    },
    journal::{Access, AccessQuery, Deed, Format, Journal, Mapping, View, answer},
    metrics::Metrics,
    terms::Moment,
};

type Pairs = Vec<(&'static str, String)>;

/// Where to ask.
pub enum Desk {
    Server(Server),
    Here(Box<Here>),
}

/// The record, opened by this process.
pub struct Here {
    journal: Journal,
    runtime: tokio::runtime::Runtime,
    /// After the journal: nobody else may have the directory before all is written.
    _held: DataDir,
}

const OPERATOR: &str = "operator";

impl Desk {
    pub fn open(url: Option<&str>, key: Option<String>, settings: &Settings) -> Result<Self, String> {
        if let Some(url) = url {
            return Ok(Self::Server(Server::at(url, key.or_else(|| settings.said.admin_key.clone()))));
        }
        let data_dir = settings.data_dir();
        let server = Server::holding(&data_dir);
        if server.get("/version")?.is_some() {
            return Ok(Self::Server(server));
        }
        if !app::record_file(&data_dir).is_file() {
            return Err(format!("there is no record in {} (--data-dir)", data_dir.display()));
        }
        let faults = |faults: Vec<crate::config::Fault>| {
            faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\ntunegate: ")
        };
        let config = settings.settle(PathBuf::new()).map_err(faults)?;
        let held = DataDir::hold(&data_dir, "looking at the record").map_err(|error| error.to_string())?;
        let store = app::open_store(&config).map_err(|error| error.to_string())?;
        // Whoever looks takes nothing away.
        let record = RecordConfig { retention: RetentionConfig::default(), ..config.record };
        let journal = Journal::open(store, &record, Arc::new(Metrics::new())).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        Ok(Self::Here(Box::new(Here { journal, runtime, _held: held })))
    }

    pub fn search(&self, pairs: Pairs) -> Result<Value, String> {
        match self {
            Self::Server(server) => answered(server.get(&with_query("/v1/journal", &pairs))?),
            Self::Here(here) => here.search(pairs),
        }
    }

    pub fn show(&self, id: &str) -> Result<Value, String> {
        match self {
            Self::Server(server) => answered(server.get(&format!("/v1/journal/{}", escaped(id)))?),
            Self::Here(here) => here.show(id),
        }
    }

    /// What came after `cursor`, or comes within half a minute.
    pub fn tail(&self, cursor: Option<u64>) -> Result<Value, String> {
        match self {
            Self::Server(server) => {
                let mut pairs = vec![("wait_ms", "30000".to_owned()), ("limit", "100".to_owned())];
                pairs.extend(cursor.map(|cursor| ("cursor", cursor.to_string())));
                answered(server.get(&with_query("/v1/journal/tail", &pairs))?)
            }
            Self::Here(_) => {
                Err("no server holds the data directory, so nothing new comes; see `journal search`".to_owned())
            }
        }
    }

    pub fn export(&mut self, pairs: Pairs, format: Format, out: &mut dyn Write) -> Result<(), String> {
        match self {
            Self::Server(server) => {
                let mut pairs = pairs;
                pairs.push(("format", format.as_str().to_owned()));
                server.download(&with_query("/v1/journal/export", &pairs), out)?.ok_or_else(gone)
            }
            Self::Here(here) => here.export(pairs, format, out),
        }
    }

    /// How many lines [`Desk::flagged`] writes, and what it leaves out.
    pub fn flagged_summary(&self, pairs: Pairs) -> Result<Value, String> {
        match self {
            Self::Server(server) => {
                let mut pairs = pairs;
                pairs.push(("summary", "true".to_owned()));
                answered(server.get(&with_query("/v1/flags/export", &pairs))?)
            }
            Self::Here(here) => {
                let (wanted, shape, _) = flags_asked(pairs)?;
                let summary = here.runtime.block_on(export::summary(&here.journal, wanted, shape));
                Ok(serde_json::to_value(summary.map_err(|error| error.to_string())?).unwrap_or_default())
            }
        }
    }

    /// Flagged answers, a line each.
    pub fn flagged(&self, pairs: Pairs, out: &mut dyn Write) -> Result<(), String> {
        match self {
            Self::Server(server) => server.download(&with_query("/v1/flags/export", &pairs), out)?.ok_or_else(gone),
            Self::Here(here) => here.flagged(pairs, out),
        }
    }

    pub fn import(&self, source: &str, rows: Vec<Value>, mapping: &Value) -> Result<Value, String> {
        match self {
            Self::Server(server) => {
                let body = json!({"source": source, "rows": rows, "mapping": mapping});
                answered(server.post("/v1/journal/import", body)?)
            }
            Self::Here(here) => here.import(source, &rows, mapping),
        }
    }

    pub fn erase(&self, user: &str) -> Result<Value, String> {
        match self {
            Self::Server(server) => answered(server.post("/v1/journal/erase", json!({"user": user}))?),
            Self::Here(here) => {
                let erasure = here.runtime.block_on(here.journal.erase_user(user, OPERATOR));
                let erasure = erasure.map_err(|error| error.to_string())?;
                Ok(serde_json::to_value(erasure).unwrap_or_default())
            }
        }
    }

    pub fn access(&self, pairs: Pairs) -> Result<Value, String> {
        match self {
            Self::Server(server) => answered(server.get(&with_query("/v1/journal/access", &pairs))?),
            Self::Here(here) => here.access(pairs),
        }
    }
}

impl Here {
    fn note(&self, deed: Deed, what: Value) -> Result<(), String> {
        let access = Access::once(Moment::unix_ms(), OPERATOR, deed, what);
        self.runtime.block_on(self.journal.note(access)).map_err(|error| error.to_string())
    }

    fn search(&self, pairs: Pairs) -> Result<Value, String> {
        let asked = asked(pairs)?;
        self.note(Deed::Search, asked.what(&self.journal))?;
        let found = self.runtime.block_on(self.journal.search(asked.search)).map_err(|error| error.to_string())?;
        Ok(page(&found, asked.view))
    }

    fn show(&self, id: &str) -> Result<Value, String> {
        let completion = self.runtime.block_on(self.journal.get(id)).map_err(|error| error.to_string())?;
        let completion = completion.ok_or_else(|| format!("there is no completion '{id}' on record"))?;
        self.note(Deed::Show, json!({"id": id}))?;
        Ok(answer(&completion, View { content: true, scores: true }))
    }

    fn export(&self, pairs: Pairs, format: Format, out: &mut dyn Write) -> Result<(), String> {
        let asked = asked(pairs)?;
        let mut what = asked.what(&self.journal);
        what["format"] = format.as_str().into();
        self.note(Deed::Export, what)?;
        let view = asked.view;
        let mut file = Box::pin(self.journal.export(asked.in_file_order(), format, view));
        while let Some(bytes) = self.runtime.block_on(file.next()) {
            out.write_all(&bytes.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        }
        out.flush().map_err(|error| error.to_string())
    }

    fn flagged(&self, pairs: Pairs, out: &mut dyn Write) -> Result<(), String> {
        let (wanted, shape, _) = flags_asked(pairs)?;
        self.note(Deed::Export, json!({"flagged": true, "format": shape.as_str()}))?;
        let mut lines = Box::pin(export::lines(&self.journal, wanted, shape));
        while let Some(line) = self.runtime.block_on(lines.next()) {
            out.write_all(&line.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        }
        out.flush().map_err(|error| error.to_string())
    }

    fn import(&self, source: &str, rows: &[Value], mapping: &Value) -> Result<Value, String> {
        let mapping: Mapping = serde_json::from_value(mapping.clone()).map_err(|error| format!("--map: {error}"))?;
        self.note(Deed::Import, json!({"source": source}))?;
        let imported = self.runtime.block_on(self.journal.import(source, rows, &mapping));
        let imported = imported.map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(imported).unwrap_or_default())
    }

    fn access(&self, pairs: Pairs) -> Result<Value, String> {
        let asked = asked(pairs)?;
        let query = AccessQuery {
            deeds: Vec::new(),
            since_ms: asked.search.since_ms.unwrap_or(i64::MIN),
            limit: asked.search.limit,
        };
        let data = self.runtime.block_on(self.journal.accesses(query)).map_err(|error| error.to_string())?;
        Ok(json!({"data": data}))
    }
}

fn flags_asked(pairs: Pairs) -> Result<(Wanted, Shape, bool), String> {
    let pairs = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    export_query(pairs).map_err(|error| error.message)
}

fn asked(pairs: Pairs) -> Result<Asked, String> {
    let pairs = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Asked::read(pairs, &[]).map_err(|error| error.message)
}

fn with_query(path: &str, pairs: &[(&'static str, String)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

fn answered(answer: Option<Value>) -> Result<Value, String> {
    answer.ok_or_else(gone)
}

fn gone() -> String {
    "the server has gone meanwhile".to_owned()
}
