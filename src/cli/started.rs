//! A server of a command's own: on a free port, with a data directory that goes with it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A child that is ended, and its directory removed, when this is dropped.
pub struct Started {
    child: Child,
    url: String,
    data_dir: PathBuf,
}

impl Started {
    /// Starts `tunegate serve MODEL` with `flags` and waits until it is ready.
    pub fn spawn(model: &Path, flags: &[String]) -> Result<Self, String> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| format!("no free port: {error}"))?
            .port();
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let data_dir = std::env::temp_dir().join(format!("tunegate-started-{}", std::process::id()));
        let child = Command::new(program)
            .arg("serve")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(flags)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("the server could not be started: {error}"))?;
        let mut started = Self { child, url: format!("http://127.0.0.1:{port}"), data_dir };
        started.wait_until_ready()?;
        Ok(started)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        while begin.elapsed() < READY_WITHIN {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("the server ended at once: {status}"));
            }
            if ureq::get(format!("{}/health/ready", self.url)).call().is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("the server was not ready within {} s", READY_WITHIN.as_secs()))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // The child and its directory are ours alone; what cannot be removed is the system's to clean.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data_dir);
    }
}
