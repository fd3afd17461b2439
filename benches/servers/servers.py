"""The servers that are measured, each on a free port of its own, and what one streamed request to them tells."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTERS = ROOT / "target/bench-adapters"
PEERS = ROOT / "target/peers"


class Server:
    """A server of ours or a peer's, on a free port, ended with the block."""

    def __init__(self, name, command, log, ready):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.name = name
        self.log = open(log, "w")
        self.process = subprocess.Popen(command(self.port), stdout=self.log, stderr=self.log)
        for _ in range(1200):
            if self.process.poll() is not None:
                sys.exit(f"{name} ended with code {self.process.returncode}: see {log}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", ready)
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        sys.exit(f"{name} was not ready within two minutes")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def stream(self, path, body):
        """When each event with text came, in seconds after the request was sent; and how many tokens were answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        began = time.monotonic()
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {response.status} {response.read()[:300]}")
        times, tokens = [], 0
        for line in response:
            if not line.startswith(b"data: ") or b"[DONE]" in line:
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{self.name}: {event['error']}")
            tokens = max(tokens, self.counted(event))
            if self.has_text(event):
                times.append(time.monotonic() - began)
        return times, tokens


class Tunegate(Server):
    def __init__(self, model, threads, scratch, adapters=ADAPTERS, flags=()):
        command = lambda port: [
            ROOT / "target/release/tunegate", "serve", model, "--served-model-name", "base", "--port", str(port),
            "--adapter-dir", adapters, "--data-dir", scratch / f"data-{port}", "--cpu-threads", str(threads), *flags,
        ]  # fmt: skip
        super().__init__("tunegate", command, scratch / "tunegate.log", "/health/ready")

    def ask(self, prompt, adapter, tokens):
        model = "base" if adapter is None else f"bench-{adapter:02}"
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        return self.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})

    @staticmethod
    def counted(event):
        return (event.get("usage") or {}).get("completion_tokens", 0)

    @staticmethod
    def has_text(event):
        return bool(event["choices"])


class LlamaCpp(Server):
    def __init__(self, program, model, threads, scratch, slots):
        loras = [flag for lora in sorted((PEERS / "loras").glob("*.gguf")) for flag in ("--lora", lora)]
        command = lambda port: [
            program, "-m", model, "--port", str(port), "--host", "127.0.0.1", "-t", str(threads), "-tb", str(threads),
            "-np", str(slots), "-c", str(slots * 1280), "--lora-init-without-apply", *loras,
        ]  # fmt: skip
        super().__init__("llama.cpp", command, scratch / "llama.cpp.log", "/health")

    def ask(self, prompt, adapter, tokens):
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        lora = [] if adapter is None else [{"id": adapter, "scale": 1.0}]
        return self.stream("/completion", {**body, "cache_prompt": False, "lora": lora})

    @staticmethod
    def counted(event):
        return event.get("tokens_predicted", 0)

    @staticmethod
    def has_text(event):
        return not event.get("stop")


def prompt(rng, length):
    """Token ids that no special token is among; no two prompts begin alike."""
    return [rng.randrange(1000, 40000) for _ in range(length)]


def bench_adapters(folder, count):
    """`count` adapters of random weights: rank 16 on all seven projections."""
    if len(list(folder.glob("*/adapter_config.json"))) < count:
        subprocess.run([sys.executable, ROOT / "scripts/make-bench-adapters", folder, str(count)], check=True)
