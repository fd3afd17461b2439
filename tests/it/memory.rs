//! What a server's memory is for: it says so when it starts, shows it as metrics, and keeps to it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use crate::support::golden;

/// A server of its own process, and what it said before it was ready.
struct Server {
    child: Child,
    address: String,
    banner: Vec<String>,
}

impl Server {
    fn start(data: &std::path::Path, kv: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tunegate"))
            .env_clear()
            .arg("serve")
            .arg(golden("models/llama"))
            .args(["--port", "0", "--kv-cache-memory-bytes", kv, "--adapter-memory-bytes", "64MiB", "--data-dir"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut banner = Vec::new();
        let ready = loop {
            let line = lines.next().expect("it becomes ready");
            if line.contains(" is ready ") {
                break line;
            }
            banner.push(line);
        };
        // The rest of the banner has to be read, or the server would write into a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let url = ready.split_whitespace().last().expect("a URL");
        Self { child, address: url.trim_start_matches("http://").trim_end_matches('/').to_owned(), banner }
    }

    fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address).expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    fn resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("a process of this system");
        let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
        pages * 4096
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_says_what_its_memory_is_for_and_takes_none_for_what_is_not_used() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path(), "2GiB");
    let told = server.banner.iter().any(|line| {
        line.contains("MiB of weights")
            && line.contains("up to 2048 MiB of keys and values")
            && line.contains("up to 64 MiB")
    });
    assert!(told, "{:?}", server.banner);
    let (weights, kv) = (server.metric("tunegate_weight_bytes"), server.metric("tunegate_kv_bytes"));
    let file = fs::metadata(golden("models/llama").join("model.safetensors")).expect("weights").len();
    assert!(weights.abs_diff(file) < file / 10, "{weights} bytes of a file of {file}");
    assert!(kv <= 2 << 30 && kv > (2 << 30) - (1 << 20), "whole blocks of 2 GiB: {kv}");
    assert_eq!(server.metric("tunegate_adapter_bytes_limit"), 64 << 20);
    if cfg!(target_os = "linux") {
        let resident = server.resident_bytes();
        assert!(resident < weights + (128 << 20), "{resident} bytes, of which the program's own are few");
    }
}
