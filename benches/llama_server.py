#!/usr/bin/env python3
"""Measures Ferry beside llama.cpp's llama-server, same GGUF files, and writes docs/llama-server.md and .csv.

    cargo build --release
    python3 models/fetch.py decoders
    python3 benches/llama_server.py --llama-server build/bin/llama-server

One server at a time, the two in turn in every round, started anew for every load so that neither finds
the other's warm caches. Closed loop: each client streams a completion over HTTP (/v1/completions, SSE),
and sends its next request when its last has ended. Prompts are distinct, drawn from a fixed seed, and the
same on both sides; --shared-words puts one common text before them all. The n-th request of a run has the
n-th prompt, whichever client sends it. Greedy, end tokens ignored, so every request has as many tokens.

Tokens are those inside the window, counted by the streamed pieces and corrected by the usage that the
server reports. TTFT runs from the request's last byte sent to the first piece with text; ITL is the time
between pieces. The client shares the machine with the server; its share is in the table. A measurement
during which something else ran is repeated (--tries); the last one stands, and the table says so.
llama-server runs with a slot per client, its defaults otherwise, but for --cache-ram 0: it would spend
time on keeping finished prompts that never come back. Standard library only.
"""

import argparse
import asyncio
import contextlib
import csv
import datetime
import itertools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
sys.path.insert(0, str(ROOT / "benches"))
import run  # noqa: E402
from perf_analyzer import cpu, ferry_version, numbers  # noqa: E402

MODELS = ["gemma3-270m", "smollm2-135m"]
CLIENTS = [1, 4, 8, 16, 32]
SIDES = ["ferry", "llama-server"]
QUIET_CORES = 0.15  # what other programs may use during a measurement
CONTEXT = 512  # tokens a llama-server slot may hold, beside the shared text
WORDS = (
    "the boat harbour ticket delay morning island captain weather queue answer engine letter market question "
    "window server paper river winter summer because although between without of in on to a from with about "
    "people water night light small large first last green stone bridge road field horse music voice hand door"
).split()


def main():
    options = parse()
    results = []
    for round_, model, clients, side in schedule(options):
        for _ in range(options.tries):
            wait_until_idle(options.patience)
            with started(side, model, clients, options) as server:
                load = Load(server, model, clients, options, seed=f"{round_} {clients}")
                measured = asyncio.run(load.measure())
            if measured["others_cpu"] <= QUIET_CORES:
                break
        result = {"round": round_, "model": model, "side": side, "clients": clients, **measured}
        results.append(result)
        print(progress(result), flush=True)
    write_report(options, results)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--llama-server", type=Path, default=Path("llama-server"), help="its binary")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--model", dest="names", action="append", help="a model of it; may be given more than once")
    parser.add_argument("--side", dest="sides", action="append", choices=SIDES, help="only this one")
    parser.add_argument("--clients", type=numbers, default=CLIENTS, help="such as 1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a measurement; many clients run in step, so several requests each")
    parser.add_argument("--warm-up", type=float, default=4.0, metavar="SECONDS", help="before it, not counted")
    parser.add_argument("--tries", type=int, default=3, help="of a measurement that something else disturbs")
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help="to wait for a quiet machine")
    parser.add_argument("--tokens", type=int, default=64, help="generated per request")
    parser.add_argument("--words", type=int, default=80, help="words of a prompt")
    parser.add_argument("--shared-words", type=int, default=0, help="words before every prompt, the same for all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of llama-server")
    parser.add_argument("--llama-option", action="append", default=[], help="passed to llama-server")
    parser.add_argument("--ferry-option", action="append", default=[], help="passed to `ferry serve`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "llama-server", help="without the ending")
    options = parser.parse_args()
    options.names = options.names or MODELS
    options.sides = options.sides or SIDES
    return options


def schedule(options):
    """Every load on both sides before the next load; which side goes first alternates."""
    order = itertools.cycle([options.sides, options.sides[::-1]])
    for round_ in range(1, options.rounds + 1):
        for model, clients in itertools.product(options.names, options.clients):
            for side in next(order):
                yield round_, model, clients, side


def started(side, model, clients, options):
    if side == "ferry":
        return run.Server(options.ferry, options.models, options=("--model", model, *options.ferry_option))
    return LlamaServer(options.models / model / "1" / "model.gguf", clients, options)


class LlamaServer:
    """A running llama-server, with a slot per client; nothing of it is left when the block ends."""

    def __init__(self, weights, slots, options, ready_timeout_s=60.0):
        (port,) = run.free_ports(1)
        self.http = f"http://127.0.0.1:{port}"
        self.ready_timeout_s = ready_timeout_s
        self.log_path = ROOT / "target" / "llama-server.log"
        context = slots * (CONTEXT + 2 * options.shared_words)
        self.command = [
            str(options.llama_server), "-m", str(weights), "--host", "127.0.0.1", "--port", str(port),
            "--parallel", str(slots), "-c", str(context), "-t", str(options.threads), "--cache-ram", "0",
            "--offline", *options.llama_option,
        ]

    def __enter__(self):
        self.log_path.parent.mkdir(exist_ok=True)
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            # 503 while it loads.
            with contextlib.suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(f"{self.http}/health", timeout=2).status == 200:
                    return self
            time.sleep(0.1)
        self.process.kill()
        sys.exit(f"llama-server is not ready; its log: {self.log_path}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Stream:
    """One request: when it was sent, when its pieces came, and the usage reported at its end."""

    sent: float
    pieces: list = field(default_factory=list)
    usage: dict = field(default_factory=dict)


class Load:
    """A number of clients in closed loop against one server."""

    def __init__(self, server, model, clients, options, seed):
        self.process, self.model, self.clients, self.options = server.process, model, clients, options
        self.host, _, self.port = server.http.removeprefix("http://").partition(":")
        self.prompts = prompts(options.words, options.shared_words, seed)
        self.streams = []

    async def measure(self):
        options = self.options
        begin = time.perf_counter() + options.warm_up
        end = begin + options.seconds
        tasks = [asyncio.create_task(self.client(end)) for _ in range(self.clients)]
        await asyncio.wait(tasks, timeout=options.warm_up, return_when=asyncio.FIRST_EXCEPTION)
        all_before, server_before, client_before = busy_seconds(), cpu_seconds(self.process.pid), own_cpu_seconds()
        await asyncio.wait(tasks, timeout=end - time.perf_counter(), return_when=asyncio.FIRST_EXCEPTION)
        server_used = cpu_seconds(self.process.pid) - server_before
        client_used = own_cpu_seconds() - client_before
        others_used = busy_seconds() - all_before - server_used - client_used
        await asyncio.gather(*tasks)
        return {
            **self.summary(begin, end),
            "server_cpu": server_used / options.seconds,
            "client_cpu": client_used / options.seconds,
            "others_cpu": max(0.0, others_used / options.seconds),
        }

    async def client(self, end):
        connection = None
        while time.perf_counter() < end:
            request = self.request()
            try:
                connection = connection or await asyncio.open_connection(self.host, int(self.port))
                keep = await self.complete(request, *connection)
            except Closed:
                # A server may end a connection that was kept; on a new one it owes an answer.
                connection[1].close()
                connection = await asyncio.open_connection(self.host, int(self.port))
                keep = await self.complete(request, *connection)
            if not keep:
                connection[1].close()
                connection = None
        if connection:
            connection[1].close()

    def request(self):
        body = json.dumps({
            "model": self.model, "prompt": next(self.prompts), "max_tokens": self.options.tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def complete(self, request, reader, writer):
        """Streams one completion; returns whether the connection may be used again. Raises Closed."""
        writer.write(request)
        stream = Stream(sent=time.perf_counter())
        keep = await read_head(reader)
        self.streams.append(stream)
        async for event in events(reader):
            came = time.perf_counter()
            if event == b"[DONE]":
                continue
            told = json.loads(event)
            if told.get("error"):
                sys.exit(f"the server says: {told['error']}")
            if any(choice.get("text") for choice in told.get("choices", [])):
                stream.pieces.append(came)
            stream.usage = told.get("usage") or stream.usage
        if stream.usage.get("completion_tokens") != self.options.tokens:
            sys.exit(f"{self.options.tokens} tokens were asked for, but: {stream.usage}")
        return keep

    def summary(self, begin, end):
        """The window's tokens per second, and the latencies of what was sent or came in it."""
        tokens = sum(stream.usage["completion_tokens"] for stream in self.streams)
        pieces = sum(len(stream.pieces) for stream in self.streams)
        inside = sum(begin <= came < end for stream in self.streams for came in stream.pieces)
        sent_inside = [stream for stream in self.streams if begin <= stream.sent < end]
        first = [1000 * (stream.pieces[0] - stream.sent) for stream in sent_inside]
        gaps = [
            1000 * (after - before)
            for stream in self.streams
            for before, after in itertools.pairwise(stream.pieces)
            if begin <= after < end
        ]
        return {
            "tokens_per_s": inside * tokens / pieces / (end - begin),
            "requests": len(sent_inside),
            "prompt_tokens": statistics.mean(stream.usage["prompt_tokens"] for stream in self.streams),
            "ttft_ms": first,
            "itl_ms": gaps,
        }


def prompts(words, shared_words, seed):
    """Endless distinct prompts, the same for the same seed."""
    shared = "".join(f"{word} " for word in random.Random("shared").choices(WORDS, k=shared_words))
    chance = random.Random(seed)
    while True:
        yield shared + " ".join(chance.choices(WORDS, k=words))


class Closed(Exception):
    """The server closed the connection instead of answering."""


async def read_head(reader):
    """Reads status and headers; returns whether the server keeps the connection. Leaves unless all is well."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error
    if " 200 " not in head.splitlines()[0]:
        sys.exit(f"the server answered {head}{(await reader.read(2000)).decode(errors='replace')}")
    if "transfer-encoding: chunked" not in head:
        sys.exit(f"the server does not stream: {head}")
    return "connection: close" not in head


async def events(reader):
    """The data of each server-sent event of a chunked body, as soon as it is whole."""
    pending = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        chunk = await reader.readexactly(size + 2)
        pending += chunk[:-2].replace(b"\r\n", b"\n")
        *whole, pending = pending.split(b"\n\n")
        for event in whole:
            data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data:
                yield data
    await reader.readline()


def cpu_seconds(pid):
    """Processor time of a process and all its threads; 0 where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds():
    """Processor time that all programs have used, and the host has taken; 0 where /proc is missing."""
    try:
        times = [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    idle, waiting = times[3:5]
    return (sum(times) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(patience_s):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(1)
        if busy_seconds() - before <= QUIET_CORES:
            return


def own_cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] if ordered else float("nan")


def progress(result):
    return (
        f"round {result['round']} {result['model']} {result['side']} {result['clients']} clients: "
        f"{result['tokens_per_s']:.1f} tok/s, TTFT p50 {percentile(result['ttft_ms'], 50):.0f} ms, "
        f"ITL p50 {percentile(result['itl_ms'], 50):.1f} ms, {result['requests']} requests of "
        f"{result['prompt_tokens']:.1f} tokens, server {result['server_cpu']:.2f} cores, "
        f"client {result['client_cpu']:.2f}, others {result['others_cpu']:.2f}"
    )


def figures(results, model, side, clients):
    """All rounds of one load together: tokens/s is the median round's, latencies are pooled. None if not measured."""
    rounds = [r for r in results if (r["model"], r["side"], r["clients"]) == (model, side, clients)]
    if not rounds:
        return None
    rates = [r["tokens_per_s"] for r in rounds]
    first, gaps = ([value for r in rounds for value in r[key]] for key in ("ttft_ms", "itl_ms"))
    return {
        "tokens_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates),
        "ttft_p50": percentile(first, 50), "ttft_p99": percentile(first, 99),
        "itl_p50": percentile(gaps, 50), "itl_p99": percentile(gaps, 99),
        "prompt_tokens": statistics.mean(r["prompt_tokens"] for r in rounds),
        "client_cpu": statistics.mean(r["client_cpu"] for r in rounds),
        "others_cpu": max(r["others_cpu"] for r in rounds),
    }


def write_report(options, results):
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plain = ["round", "model", "side", "clients", "tokens_per_s", "requests", "prompt_tokens"]
    usage = ["server_cpu", "client_cpu", "others_cpu"]
    with open(options.out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*plain, "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", *usage])
        for result in results:
            latencies = [percentile(result[key], p) for key in ("ttft_ms", "itl_ms") for p in (50, 99)]
            row = [*(result[key] for key in plain), *latencies, *(result[key] for key in usage)]
            writer.writerow([f"{value:.2f}" if isinstance(value, float) else value for value in row])
    lines = ["# Ferry beside llama-server", "", *setting(options), ""]
    for model in options.names:
        lines += [f"## {model}", "", *table(options, results, model), ""]
    text = "\n".join(lines)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def setting(options):
    shared = f" after {options.shared_words} shared ones" if options.shared_words else ""
    return [
        f"- Prompts of {options.words} random words{shared}, {options.tokens} tokens generated, greedy, streamed",
        "  over HTTP (`/v1/completions`); closed loop.",
        f"- {options.rounds} rounds of {options.seconds:g} s per load and side in turn; tokens/s is the median round's",
        "  (lowest to highest), latencies are over all rounds, in ms.",
        f"- Machine: {cpu()}, {os.cpu_count()} cores visible, {platform.system()} {platform.machine()}; the client runs",
        "  on the same cores.",
        f"- Ferry: {ferry_version(options.ferry) if 'ferry' in options.sides else 'not measured'}",
        f"- llama-server: {llama_version(options) if 'llama-server' in options.sides else 'not measured'}",
        f"- Made on {datetime.date.today().isoformat()} by `python3 benches/llama_server.py`",
    ]


def llama_version(options):
    done = subprocess.run([str(options.llama_server), "--version"], capture_output=True, text=True)
    words = " ".join((done.stdout + done.stderr).split())
    slots = f"`--parallel <clients> -t {options.threads} --cache-ram 0 {' '.join(options.llama_option)}".strip()
    return f"{words.removeprefix('version: ')}; {slots}`"


def table(options, results, model):
    heads = ["clients", "side", "tokens/s", "ratio", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "prompt tokens"]
    heads += ["client cores", "others' cores"]
    yield "| " + " | ".join(heads) + " |"
    yield "| ---: | --- |" + " ---: |" * (len(heads) - 2)
    for clients in options.clients:
        theirs = figures(results, model, "llama-server", clients)
        for side in options.sides:
            one = figures(results, model, side, clients)
            ratio = f"{one['tokens_per_s'] / theirs['tokens_per_s']:.2f}" if side == "ferry" and theirs else ""
            cells = [
                str(clients), side, f"{one['tokens_per_s']:.1f} ({one['lowest']:.1f}–{one['highest']:.1f})", ratio,
                f"{one['ttft_p50']:.0f}", f"{one['ttft_p99']:.0f}", f"{one['itl_p50']:.1f}", f"{one['itl_p99']:.1f}",
                f"{one['prompt_tokens']:.1f}", f"{one['client_cpu']:.2f}", f"{one['others_cpu']:.2f}",
            ]
            yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
