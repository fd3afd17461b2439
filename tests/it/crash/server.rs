//! The binary, started over the tiny model, asked over HTTP, and killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::names::{Name, Version};
use crate::support::golden;

const PROMPT: &str = "the quick brown fox";

/// A server that is killed when this is dropped.
pub struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts it over `data`; adapters are loaded from `place/root`. Does not wait until it is ready.
    pub fn spawn(data: &Path, place: &Path, prepare: impl Fn(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunegate"));
        command
            .env_clear()
            .arg("serve")
            .arg(golden("models/llama"))
            .args(["--port", "0", "--kv-cache-memory-bytes", "4MiB", "--cpu-threads", "1", "--data-dir"])
            .arg(data)
            .arg("--adapter-dir")
            .arg(place.join("none"))
            .arg("--adapter-root")
            .arg(place.join("root"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        prepare(&mut command);
        Self { child: command.spawn().expect("the binary starts"), url: String::new() }
    }

    /// As [`Server::spawn`], and ready.
    pub fn start(data: &Path, place: &Path, prepare: impl Fn(&mut Command)) -> Self {
        let mut server = Self::spawn(data, place, prepare);
        let output = server.child.stdout.take().expect("piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let ready = lines.find(|line| line.contains(" is ready ")).expect("it becomes ready");
        server.url = ready.split_whitespace().last().expect("a URL").to_owned();
        // The rest of the banner has to be read, or the server would write into a closed pipe.
        thread::spawn(move || lines.for_each(drop));
        server
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// `kill -9` after some time.
    pub fn kill_after(&mut self, delay: Duration) {
        let (_sender, nothing) = mpsc::channel::<()>();
        assert!(nothing.recv_timeout(delay).is_err());
        self.kill();
    }

    fn kill(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        self.child.wait().expect("gone");
    }

    /// What each version answers, alone and undisturbed.
    pub fn learn(&self, versions: &mut [Version]) {
        for version in versions.iter_mut() {
            let mut name = Name::new("learned");
            name.load(&self.url, 0, version).expect("it loads");
            version.answer = answer(&self.url, "learned").expect("answered").expect("served");
        }
        for (index, version) in versions.iter().enumerate() {
            let same = versions[..index].iter().find(|other| other.answer == version.answer);
            assert!(same.is_none(), "two versions answer {:?}", version.answer);
        }
    }

    /// Holds what the server serves under a name against what is known of it; afterwards that is known.
    ///
    /// # Errors
    /// What does not fit.
    pub fn settle(&self, name: &mut Name, versions: &[Version]) -> Result<(), String> {
        let shown = get(&format!("{}/v1/adapters/{}", self.url, name.name)).ok_or("the server does not answer")?;
        let steps = shown["history"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found: Vec<Option<usize>> = steps
            .iter()
            .rev()
            .map(|step| match step["version"].as_str() {
                None => Ok(None),
                Some(digest) => {
                    let index = versions.iter().position(|version| version.digest == digest);
                    index.map(Some).ok_or_else(|| format!("{}: {digest} was never loaded", name.name))
                }
            })
            .collect::<Result<_, String>>()?;
        name.settle(found)?;
        let expected = name.now().map(|index| &versions[index]);
        let status = match (expected, shown["status"].as_str()) {
            (Some(_), Some("serving")) | (None, Some("unloaded") | None) => Ok(()),
            (_, status) => Err(format!("{} is {status:?}: {shown}", name.name)),
        };
        status?;
        let said = answer(&self.url, &name.name)?;
        if said.as_ref() != expected.map(|version| &version.answer) {
            return Err(format!("{} answers {said:?}; its version answers {expected:?}", name.name));
        }
        let gone = shown["versions"].as_array().into_iter().flatten().find(|version| version["tier"] == "gone");
        gone.map_or(Ok(()), |gone| Err(format!("{}: the files of {gone} are gone", name.name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
}

fn get(url: &str) -> Option<Value> {
    agent().get(url).call().ok()?.body_mut().read_json().ok()
}

/// Status and body; `None` where the server died.
pub fn post(url: &str, body: &Value) -> Option<(u16, Value)> {
    let request = agent().post(url).header("accept", "application/json").send_json(body);
    let mut answer = request.ok()?;
    let status = answer.status().as_u16();
    // What is acknowledged is so from the first line on.
    Some((status, answer.body_mut().read_json().unwrap_or_default()))
}

/// A greedy answer; `None` for a name that is not served.
fn answer(url: &str, model: &str) -> Result<Option<String>, String> {
    let body = json!({"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let (status, body) = post(&format!("{url}/v1/completions"), &body).ok_or("the server does not answer")?;
    match status {
        200 => Ok(Some(body["choices"][0]["text"].as_str().unwrap_or_default().to_owned())),
        404 => Ok(None),
        _ => Err(format!("{model}: {status}: {body}")),
    }
}
