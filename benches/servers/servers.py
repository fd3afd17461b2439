"""The servers that are measured, each on a free port of its own, and what one streamed request to them tells."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from prompts import text_of

HERE = Path(__file__).resolve().parent
# Positions of keys and values for each stream: the longest prompt that is compared, and its answer.
POSITIONS = 1280


@dataclass
class Answer:
    """When each event with a token came, on the clock of `time.monotonic`; and what the server counted."""

    began: float = 0.0
    times: list = field(default_factory=list)
    tokens: int = 0

    @property
    def first(self):
        return self.times[0] - self.began


class Server:
    """A server of ours or a peer's, on a free port, ended with the block."""

    def __init__(self, name, command, log, ready, environment=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.name = name
        self.log = open(log, "w")
        self.process = subprocess.Popen(command(self.port), stdout=self.log, stderr=self.log, env={**os.environ, **(environment or {})})
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"{name} ended with code {self.process.returncode}: see {log}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", ready)
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        self.close()
        sys.exit(f"{name} was not ready within ten minutes: see {log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def ask(self, prompt, adapter, tokens, answer=None, until=None):
        """Sends one request (token ids, the number of an adapter or None, how many tokens to answer) and reads its stream.

        `answer` is filled as it comes; with `until`, an event, the client hangs up once that is set."""
        path, body = self.request(prompt, adapter, tokens)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        answer, read = answer or Answer(), None
        answer.began = time.monotonic()
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {response.status} {response.read()[:300]}")
        for line in response:
            line = line.removeprefix(b"data: ").strip()
            if not line.startswith(b"{"):
                continue
            event = json.loads(line)
            if "error" in event:
                raise RuntimeError(f"{self.name}: {event['error']}")
            counts = self.counts(event)
            if counts:
                read, answer.tokens = counts
            if self.is_token(event):
                answer.times.append(time.monotonic())
            if until and until.is_set():
                connection.close()
                return answer
        # A single token whose bytes are no text yet comes with the end.
        answer.times = answer.times or [time.monotonic()]
        if (read, answer.tokens) != (len(prompt), tokens):
            raise RuntimeError(f"{self.name} read {read} and wrote {answer.tokens} tokens instead of {len(prompt)} and {tokens}")
        return answer

    def pss(self):
        """Proportional set size of the process, in bytes."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return 1024 * int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1])


class OpenAi(Server):
    """Servers that take token ids at /v1/completions and know adapters as models."""

    def request(self, prompt, adapter, tokens):
        model = "base" if adapter is None else adapter_name(adapter)
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        return "/v1/completions", {**body, "stream_options": {"include_usage": True}}

    @staticmethod
    def counts(event):
        usage = event.get("usage")
        return usage and (usage["prompt_tokens"], usage["completion_tokens"])

    @staticmethod
    def is_token(event):
        return bool(event["choices"]) and (bool(event["choices"][0]["text"]) or event["choices"][0]["finish_reason"] is None)


class Tunegate(OpenAi):
    def __init__(self, program, model, threads, scratch, adapters, flags=()):
        command = lambda port: [
            program, "serve", model, "--served-model-name", "base", "--port", str(port), "--adapter-dir", adapters,
            "--data-dir", scratch / f"data-{port}", "--cpu-threads", str(threads), *flags,
        ]  # fmt: skip
        super().__init__("tunegate", command, scratch / "tunegate.log", "/health/ready")


class Vllm(OpenAi):
    """vLLM for CPUs. It has its own start-up program only where the package is called `vllm`, hence the module."""

    def __init__(self, python, folder, dtype, threads, scratch, slots, loras, instructions=None):
        prefix = Path(python).absolute().parent.parent
        preload = [path for path in (prefix / "lib/libiomp5.so", Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")) if path.is_file()]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            # As its guide for CPUs recommends.
            "LD_PRELOAD": ":".join(str(path) for path in preload),
        }
        if instructions == "avx2":
            # Its libraries listen to these; its own kernels use what they were built for.
            environment |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
        adapters = ["--enable-lora", "--max-loras", str(len(loras)), "--max-lora-rank", "16", "--lora-modules"]
        adapters += [f"{path.name}={path}" for path in loras]
        command = lambda port: [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "base", "--host", "127.0.0.1",
            "--port", str(port), "--dtype", dtype, "--max-model-len", "2048", "--max-num-seqs", str(slots), "--no-enable-prefix-caching",
            *(adapters if loras else []),
        ]  # fmt: skip
        super().__init__("vllm-cpu", command, scratch / f"vllm-{len(loras)}.log", "/health", environment)


class LlamaCpp(Server):
    def __init__(self, program, model, threads, scratch, slots, loras, flags=()):
        adapters = [flag for lora in loras for flag in ("--lora", lora)]
        command = lambda port: [
            program, "-m", model, "--port", str(port), "--host", "127.0.0.1", "-t", str(threads), "-tb", str(threads),
            "-np", str(slots), "-c", str(slots * POSITIONS), "--cache-ram", "0", "--lora-init-without-apply", *adapters, *flags,
        ]  # fmt: skip
        super().__init__("llama.cpp", command, scratch / "llama.cpp.log", "/health")

    def request(self, prompt, adapter, tokens):
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        # A request that names no adapter gets all that the server has loaded, whatever `--lora-init-without-apply` says.
        lora = [{"id": adapter or 0, "scale": 0.0 if adapter is None else 1.0}]
        return "/completion", {**body, "cache_prompt": False, "lora": lora}

    @staticmethod
    def counts(event):
        return event.get("stop") and (event["tokens_evaluated"], event["tokens_predicted"])

    @staticmethod
    def is_token(event):
        return not event.get("stop")


class MistralRs(Server):
    """mistral.rs by its Python package; it takes text, not tokens."""

    def __init__(self, python, folder, dtype, threads, scratch, slots, loras):
        environment = {"RAYON_NUM_THREADS": str(threads), "CANDLE_NUM_THREADS": str(threads)}
        command = lambda port: [python, HERE / "mistralrs_server.py", folder, str(port), dtype, str(slots), *loras]
        self.folder = folder
        super().__init__("mistralrs", command, scratch / f"mistralrs-{len(loras)}.log", "/", environment)

    def request(self, prompt, adapter, tokens):
        name = None if adapter is None else adapter_name(adapter)
        return "/generate", {"prompt": text_of(prompt, self.folder), "tokens": tokens, "adapter": name}

    @staticmethod
    def counts(event):
        return event and (event["prompt_tokens"], event["completion_tokens"])

    @staticmethod
    def is_token(event):
        return not event


def end_on_request():
    """Lets SIGTERM end this program like an error would, and its servers with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended on request"))


def adapter_name(number):
    return f"bench-{number:02}"
