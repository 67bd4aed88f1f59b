#!/usr/bin/env python3
"""How much of a client's latency the spans of its request explain.

    pip install opentelemetry-proto
    python benches/trace.py --ferry target/release/ferry --models models --model minilm

Starts a receiver of OTLP over HTTP (OpenTelemetry's own message definitions), a server that sends its
spans there, and a client on one kept connection that sends a `traceparent` with each request. Prints,
for each stage, its time; and the sum of a request's stages, and its server span, over what the client's
clock says. Figures, not a verdict: run it on a quiet machine.
"""

import argparse
import http.client
import json
import os
import secrets
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TEXT = "the ferry leaves when it is full or when its time has come, and all who boarded arrive "
STAGES = ("admission", "tokenize", "queue", "execute", "postprocess", "reply")


class Receiver(BaseHTTPRequestHandler):
    spans = []

    def do_POST(self):
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(connection, path, body, trace):
    headers = {"content-type": "application/json", "traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    sent = time.perf_counter()
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - sent
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", required=True, type=Path)
    parser.add_argument("--models", default="models", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--requests", default=200, type=int)
    parser.add_argument("--rows", default=8, type=int)
    parser.add_argument("--words", default=64, type=int)
    options = parser.parse_args()

    collector, grpc, web = free_port(), free_port(), free_port()
    receiver = ThreadingHTTPServer(("127.0.0.1", collector), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "ferry.toml"
        config.write_text(
            f'[models]\ndirectory = "{options.models.resolve()}"\nserve = ["{options.model}"]\n'
            f'[grpc]\nport = {grpc}\n[http]\nport = {web}\n[admin]\nenabled = false\n'
            f'[traces]\nendpoint = "http://127.0.0.1:{collector}"\nprotocol = "http"\ninterval_seconds = 0.2\n'
        )
        server = subprocess.Popen(
            [options.ferry, "serve", "--config", config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", web, timeout=60)
                    connection.request("GET", "/health/ready")
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status == 200:
                        break
                except OSError:
                    pass
                if server.poll() is not None:
                    raise SystemExit("the server does not start")
                time.sleep(0.1)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            words = (TEXT * (options.words // 16 + 1)).split()[: options.words]
            latencies = {}
            for number in range(options.requests + 20):
                # Each with other words, so that nothing is answered from a cache.
                texts = [f"{number} {row} " + " ".join(words) for row in range(options.rows)]
                body = json.dumps({"model": options.model, "input": texts, "encoding_format": "base64"})
                trace = secrets.token_hex(16)
                took = ask(connection, "/v1/embeddings", body, trace)
                if number >= 20:
                    latencies[trace] = took
        finally:
            server.terminate()
            server.wait(60)
    traces = {}
    for span in Receiver.spans:
        traces.setdefault(span.trace_id.hex(), {})[span.name] = (
            span.end_time_unix_nano - span.start_time_unix_nano
        ) / 1e9
    seen = [(latencies[trace], traces[trace]) for trace in latencies if trace in traces]
    print(f"{len(seen)} of {len(latencies)} traces seen; {options.rows} texts of {options.words} words a request")
    for stage in STAGES:
        print(f"  {stage:<12} {statistics.median(spans.get(stage, 0.0) for _, spans in seen) * 1e3:9.3f} ms")
    client = statistics.median(took for took, _ in seen) * 1e3
    stages = [sum(spans.get(stage, 0.0) for stage in STAGES) / took for took, spans in seen]
    root = [spans["POST /v1/embeddings"] / took for took, spans in seen]
    print(f"  client       {client:9.3f} ms")
    for name, shares in (("stages / client", stages), ("server span / client", root)):
        within = sum(share >= 0.95 for share in shares) / len(shares)
        print(f"{name}: median {statistics.median(shares):.3f}, {within:.0%} of requests within 5 %")


if __name__ == "__main__":
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    main()
