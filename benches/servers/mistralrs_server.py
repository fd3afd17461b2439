#!/usr/bin/env python3
"""Serves a Hugging Face folder by mistral.rs over HTTP: what its Python package lacks to be measured like the others.

    PYTHON benches/servers/mistralrs_server.py FOLDER PORT f32|f16|bf16 SEQUENCES [ADAPTER …]

POST /generate {"prompt", "tokens", "adapter"} streams a line of JSON for each event: {} for a token, and at the end
{"prompt_tokens", "completion_tokens"}. The prompt is text and is taken as it stands, without a chat template; answers are
greedy and do not end before `tokens`. Each ADAPTER is a PEFT folder, known by its name. PYTHON has the package `mistralrs`.
"""

import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mistralrs import ChatCompletionRequest, LoraAdapter, ModelDType, Runner, Which

DTYPES = {"f32": ModelDType.F32, "f16": ModelDType.F16, "bf16": ModelDType.BF16}


def runner(folder, dtype, sequences, adapters):
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write("{{ messages[0]['content'] }}")
        template.flush()
        which = {"model_id": str(folder), "dtype": DTYPES[dtype]}
        if adapters:
            loaded = [LoraAdapter(path.name, str(path)) for path in adapters]
            which = Which.Lora(**which, adapters=loaded, max_adapters=len(loaded))
        else:
            which = Which.Plain(**which)
        return Runner(which=which, max_seqs=sequences, prefix_cache_n=0, jinja_explicit=template.name)


class Handler(BaseHTTPRequestHandler):
    runner = None
    # The runner refuses a request that comes while it takes another.
    taking = threading.Lock()
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        ask = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = ChatCompletionRequest(
            messages=ask["prompt"], model="default", max_tokens=ask["tokens"], temperature=0.0, stream=True,
            ignore_eos=True, adapter=ask["adapter"],
        )  # fmt: skip
        self.send_response(200)
        self.end_headers()
        usage = None
        with self.taking:
            chunks = self.runner.send_chat_completion_request(request)
        for chunk in chunks:
            usage = chunk.usage or usage
            if chunk.choices[0].finish_reason is None:
                self.line({})
        self.line({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens})

    def line(self, event):
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    if len(sys.argv) < 5 or sys.argv[3] not in DTYPES:
        sys.exit(__doc__)
    folder, port, dtype, sequences = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    Handler.runner = runner(folder, dtype, sequences, [Path(adapter) for adapter in sys.argv[5:]])
    Server(("127.0.0.1", port), Handler).serve_forever()


main()
