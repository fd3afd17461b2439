//! A server of a command's own: on a free port, with a data directory that goes with it.

use std::{
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

/// The data directory of the server that this process starts. What the caller puts there before goes with it.
pub fn place() -> PathBuf {
    std::env::temp_dir().join(format!("tunegate-started-{}", std::process::id()))
}

/// How long a server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A server that is ended, and its directory removed, when this is dropped or this process gets a signal. It holds the
/// other end of the server's standard input, so the server ends also where no code of ours runs any more.
pub struct Started {
    server: Arc<Server>,
    url: String,
    /// From its start until it was ready.
    took: Duration,
}

struct Server {
    child: Mutex<Child>,
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
        let data_dir = place();
        let signals = Signals::catch().map_err(|error| format!("signals cannot be caught: {error}"))?;
        let begin = Instant::now();
        let child = Command::new(program)
            .arg("serve")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--end-with-stdin", "--data-dir"])
            .arg(&data_dir)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("the server could not be started: {error}"))?;
        let server = Arc::new(Server { child: Mutex::new(child), data_dir });
        let url = format!("http://127.0.0.1:{port}");
        let mut started = Self { server: Arc::clone(&server), url, took: Duration::ZERO };
        signals.end(server);
        started.wait_until_ready(begin)?;
        started.took = begin.elapsed();
        Ok(started)
    }

    /// How long it took until it was ready, the program's own start included; to a hundredth of a second.
    pub fn took(&self) -> Duration {
        self.took
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn wait_until_ready(&self, begin: Instant) -> Result<(), String> {
        while begin.elapsed() < READY_WITHIN {
            if let Some(status) = self.server.child().try_wait().map_err(|error| error.to_string())? {
                return Err(format!("the server ended at once: {status}"));
            }
            if ureq::get(format!("{}/health/ready", self.url)).call().is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("the server was not ready within {} s", READY_WITHIN.as_secs()))
    }
}

impl Server {
    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        // The child and its directory are ours alone; what cannot be removed is the system's to clean.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(&self.data_dir);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.server.end();
    }
}

/// The signals that end a process, caught from now on.
struct Signals {
    runtime: Runtime,
    /// With its number.
    caught: Vec<(Signal, i32)>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let guard = runtime.enter();
        let kinds = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()];
        let caught =
            kinds.into_iter().map(|kind| Ok((signal(kind)?, kind.as_raw_value()))).collect::<io::Result<_>>()?;
        drop(guard);
        Ok(Self { runtime, caught })
    }

    /// Ends `server` before the first of them ends this process.
    fn end(self, server: Arc<Server>) {
        let Self { runtime, mut caught } = self;
        thread::spawn(move || {
            let received = caught.iter_mut().map(|(signal, number)| {
                Box::pin(async move {
                    signal.recv().await;
                    *number
                })
            });
            let (number, ..) = runtime.block_on(futures_util::future::select_all(received));
            server.end();
            // As a shell reports what a signal has ended.
            std::process::exit(128 + number);
        });
    }
}
