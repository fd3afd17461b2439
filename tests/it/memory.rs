//! What a server's memory is for: it says so when it starts, shows it as metrics, and keeps to it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::golden;

/// A server of its own process, and what it said before it was ready.
struct Server {
    child: Child,
    address: String,
    banner: Vec<String>,
}

impl Server {
    fn start(data: &Path, kv: &str) -> Self {
        Self::start_with(data, kv, &["--adapter-memory-bytes", "64MiB"])
    }

    fn start_with(data: &Path, kv: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tunegate"))
            .env_clear()
            .arg("serve")
            .arg(golden("models/llama"))
            .args(["--port", "0", "--kv-cache-memory-bytes", kv, "--data-dir"])
            .arg(data)
            .args(more)
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

    /// Changes an adapter, and succeeds.
    fn change(&self, path: &str, body: &Value) {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        let head = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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

/// An adapter of rank 512 on every projection of the tiny llama, whose version depends on `number`: 4 MiB in float32.
fn write_large(folder: &Path, number: usize) {
    const RANK: usize = 512;
    let sites = [
        ("self_attn.q_proj", 64, 64),
        ("self_attn.k_proj", 64, 32),
        ("self_attn.v_proj", 64, 32),
        ("self_attn.o_proj", 64, 64),
        ("mlp.gate_proj", 64, 128),
        ("mlp.up_proj", 64, 128),
        ("mlp.down_proj", 128, 64),
    ];
    let (mut header, mut values) = (serde_json::Map::new(), Vec::new());
    for layer in 0..2 {
        for (site, inputs, outputs) in sites {
            for (half, shape) in [("lora_A", [RANK, inputs]), ("lora_B", [outputs, RANK])] {
                let begin = values.len();
                values.extend((0..shape[0] * shape[1]).flat_map(|at| ((at % 7) as f32 * 1e-5).to_le_bytes()));
                let name = format!("base_model.model.model.layers.{layer}.{site}.{half}.weight");
                header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, values.len()]}));
            }
        }
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(&values);
    fs::create_dir_all(folder).expect("made");
    fs::write(folder.join("adapter_model.safetensors"), file).expect("written");
    let modules = sites.map(|(site, _, _)| site.rsplit_once('.').expect("a module").1);
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": number + 1, "target_modules": modules});
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
}

#[test]
fn the_system_gets_the_memory_of_unloaded_adapters_back() {
    const ADAPTERS: usize = 16;
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    (0..ADAPTERS).for_each(|number| write_large(&root.join(format!("a{number}")), number));
    let root = root.display().to_string();
    let flags = ["--adapter-root", &root, "--exact", "--adapter-trial=false", "--adapter-memory-bytes=1GiB"];
    let server = Server::start_with(&folder.path().join("data"), "64MiB", &flags);
    let load = |number: usize| {
        server.change(
            "/v1/load_lora_adapter",
            &json!({"lora_name": format!("a{number}"), "lora_path": format!("a{number}")}),
        );
    };
    // What reading one takes for the first time is not the adapters' own.
    load(0);
    server.change("/v1/unload_lora_adapter", &json!({"lora_name": "a0"}));
    let before = server.resident_bytes();
    (0..ADAPTERS).for_each(load);
    let (held, full) = (server.metric("tunegate_adapter_bytes"), server.resident_bytes());
    assert!(held > 48 << 20, "{held} bytes of adapters");
    for number in 0..ADAPTERS {
        server.change("/v1/unload_lora_adapter", &json!({"lora_name": format!("a{number}")}));
    }
    while server.metric("tunegate_adapter_bytes") > 0 {
        // It is freed on a thread of its own.
    }
    if cfg!(target_os = "linux") {
        assert!(full > before + held / 2, "{before} bytes, then {full} with {held} of adapters");
        // Small buffers are given back once nothing more is freed.
        let given_back = || server.resident_bytes() < before + held / 8;
        let began = std::time::Instant::now();
        while !given_back() {
            let after = server.resident_bytes();
            assert!(began.elapsed().as_secs() < 60, "{before} bytes, {full} with {held} of adapters, and then {after}");
        }
    }
}
