#!/usr/bin/env python3
"""What a server is worth when more is asked of it than it can do; writes docs/overload.md and docs/overload.svg.

    cargo build --release
    python3 models/fetch.py minilm smollm2-135m
    python3 benches/overload.py --ferry target/release/ferry --models models

Measures what the server bears in a closed loop (its capacity), and then offers 0.5 to 5 times as much in an open loop
with `ferry bench`, every call with a deadline that the server is told (`x-request-timeout-ms`). Goodput is the answers a
second that were complete within their deadline, counted from when the call was due. Where there are two processors or
more, the server has the first and the load comes from the others, so that the load costs the server nothing but what it
is asked.

Then it is measured what a refusal costs: calls are sent whose deadline can't be kept, and the server's processor time
is divided by their number. Exits with 1 unless goodput stays within 10 % of its maximum and the 99th percentile of what
was answered is within the deadline. Standard library only.
"""

import argparse
import asyncio
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(ROOT / "benches")]
import floods  # noqa: E402
import pictures  # noqa: E402
import run  # noqa: E402
from traffic import SENTENCES, Connection  # noqa: E402

FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
# Deadline in ms, clients of the closed loop, further arguments of `ferry bench`.
CASES = {
    "minilm": ("embed", 250, 16, ("--endpoint", "embed")),
    "smollm2-135m": ("generate", 4000, 12, ("--endpoint", "generate", "--max-tokens", "24", "--words", "40")),
}


def main():
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    options.server_cores, options.load_cores = (cores[:1], cores[1:]) if len(cores) > 1 else (cores, cores)
    found = json.loads(options.kept.read_text()) if options.kept.exists() else {}
    for name in options.only or CASES:
        found[name] = measure(options, name)
        options.kept.write_text(json.dumps(found, indent=1) + "\n")
    faults = [fault for name in found for fault in judge(name, found[name])]
    print(write_report(options, found, faults))
    sys.exit(int(bool(faults)))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--only", action="append", choices=tuple(CASES), help="one of the models; the other's figures stay")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "overload.md")
    parser.add_argument("--kept", type=Path, default=ROOT / "target" / "overload.json", help="figures, for --only")
    return parser.parse_args()


def measure(options, name):
    task, deadline, clients, more = CASES[name]
    server = run.Server(options.ferry, options.models, options=("--model", name))
    server.log_path = options.kept.with_suffix(".log")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, options.server_cores)
    with server:
        os.sched_setaffinity(0, options.load_cores)
        bench = lambda *load: run_bench(options, server, name, more, load)  # noqa: E731
        (closed,) = bench("--clients", str(clients), "--seconds", str(2 * options.seconds))
        capacity = closed["served_calls_per_second"]
        if capacity == 0:
            sys.exit(f"{name}: no call was answered within {2 * options.seconds:g} s; is the machine busy?")
        rates = ",".join(f"{capacity * factor:.3f}" for factor in FACTORS)
        limits = ("--slo-p99", str(deadline), "--header", f"x-request-timeout-ms: {deadline}")
        points = bench("--rate", rates, "--seconds", str(options.seconds), "--max-in-flight", "8192", *limits)
        refusals = asyncio.run(refuse(server, name, task, server.process.pid))
        os.sched_setaffinity(0, before)
        server.stop()
    return {"capacity": capacity, "deadline_ms": deadline, "points": points, "refusals": refusals}


def run_bench(options, server, name, more, load):
    command = [options.ferry, "bench", "--url", f"http://{server.grpc}", "--model", name, *more, *load, "--rounds", "1",
               "--warm-up", "2", "--json"]
    told = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(told.stdout)["measured"]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def refuse(server, name, task, pid, seconds=4.0):
    """The server's processor time for a call that it refuses, in µs, over HTTP and over gRPC."""
    text = " ".join(SENTENCES[:4])
    if task == "embed":
        path, body = "/v1/embeddings", {"model": name, "input": text}
    else:
        path, body = "/v1/completions", {"model": name, "prompt": text, "max_tokens": 4000}
    # While something runs, and long, as under overload: alone, whoever comes is let in.
    busy = Connection(server.http)
    if task == "generate":
        # As many tokens as the model has room for.
        await busy.send("POST", path, body | {"stream": True, "ignore_eos": True, "max_tokens": 7000})
        await busy.head()
        await asyncio.sleep(0.5)
    idle_from, idle_began = cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(1.0)
    base = (cpu_seconds(pid) - idle_from) / (time.perf_counter() - idle_began)
    counts = {}

    async def client(until):
        connection = Connection(server.http)
        while time.perf_counter() < until:
            status, _, _ = await connection.ask("POST", path, body, {"x-request-timeout-ms": 3})
            counts[status] = counts.get(status, 0) + 1
        connection.close()

    cpu, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(client(began + seconds) for _ in range(4)))
    spent = cpu_seconds(pid) - cpu
    refused = sum(count for status, count in counts.items() if status in (429, 504))
    busy.abort()
    told = {"HTTP": {"refused": refused, "of": sum(counts.values()), "by_status": counts, "base_share": base}}
    if task == "embed":
        # The loop's own processor time is in the base where a generation runs beside it.
        told["HTTP"]["us"] = spent / max(1, sum(counts.values())) * 1e6
        counts, cpu = call_over_grpc(server, name, text, seconds, pid)
        told["gRPC"] = {"refused": counts, "of": counts, "us": cpu / max(1, counts) * 1e6}
    return told


def call_over_grpc(server, name, text, seconds, pid):
    options = b"\x0a" + bytes([len(name)]) + name.encode()
    encoded = text.encode()
    message = b"\x0a" + bytes([len(options)]) + options + b"\x12" + varint(len(encoded)) + encoded
    stream_body = b"\x00" + len(message).to_bytes(4) + message
    count, cpu, until = 0, cpu_seconds(pid), time.perf_counter() + seconds
    with floods.Http2(server.grpc) as client:
        while time.perf_counter() < until:
            # Eight at a time.
            wanted, out = set(), b""
            for _ in range(8):
                stream = client.stream()
                wanted.add(stream)
                head = floods.call_headers("/ferry.v1.Inference/Embed", floods.literal("grpc-timeout", "3m"))
                out += floods.frame(floods.HEADERS, floods.END_HEADERS, stream, head) + floods.frame(floods.DATA, floods.END_STREAM, stream, stream_body)
            client.send(out)
            while wanted and (told := client.read_frame()) is not None:
                if told[0] == floods.RST_STREAM or told[0] in (floods.HEADERS, floods.DATA) and told[1] & floods.END_STREAM:
                    wanted.discard(told[2])
            count += 8
    return count, cpu_seconds(pid) - cpu


def varint(count):
    out = b""
    while count >= 128:
        out += bytes([count % 128 | 128])
        count //= 128
    return out + bytes([count])


def judge(name, found):
    points, deadline = found["points"], found["deadline_ms"]
    goodput = [point["calls_per_second_within_slo"] for point in points]
    most = max(goodput)
    for factor, point, good in zip(FACTORS, points, goodput):
        if factor >= 1.0 and good < 0.9 * most:
            yield f"{name}: goodput {good:.1f}/s at {factor:g} × capacity, below 90 % of {most:.1f}/s"
        if point["p99_ms"] > deadline:
            yield f"{name}: p99 {point['p99_ms']:.0f} ms at {factor:g} × capacity, the deadline is {deadline} ms"


def write_report(options, found, faults):
    svg = options.out.with_suffix(".svg")
    series = {}
    for name, one in found.items():
        most = max(point["calls_per_second_within_slo"] for point in one["points"])
        series[f"{name}: goodput"] = [(f, p["calls_per_second_within_slo"] / most * 100) for f, p in zip(FACTORS, one["points"])]
        series[f"{name}: p99 ÷ deadline"] = [(f, p["p99_ms"] / one["deadline_ms"] * 100) for f, p in zip(FACTORS, one["points"])]
    picture = pictures.over_time("Goodput, % of the most; p99 of what is answered, % of the deadline", "offered, × capacity",
                                 series, marks=True, ceiling=("90 %", 90))
    svg.write_text(picture)
    text = f"""# More load than a server can bear

`python3 benches/overload.py`, {datetime.date.today()}, {os.cpu_count()} cores: the server has {len(options.server_cores)}, the load comes from the rest.
Open loop, Poisson; {options.seconds:g} s a load. Goodput is answers within their deadline, counted from when they were due;
capacity is what a closed loop gets. Latencies are those of what was answered.

**{'; '.join(faults) if faults else 'Goodput stays within 10 % of its maximum up to five times the capacity, and 99 in 100 answers keep their deadline.'}**

![Goodput against offered load]({svg.name})
"""
    for name, one in found.items():
        text += f"\n## {name}: capacity {one['capacity']:.1f} calls/s, deadline {one['deadline_ms']} ms\n\n"
        text += "| offered | calls/s | goodput/s | of its maximum | p50, ms | p99, ms | TTFT p99, ms | refused/s | too late/s |\n"
        text += "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        most = max(point["calls_per_second_within_slo"] for point in one["points"])
        for factor, point in zip(FACTORS, one["points"]):
            good = point["calls_per_second_within_slo"]
            codes = {code: failed["count"] / options.seconds for code, failed in point["errors_by_code"].items()}
            refused = codes.pop("RESOURCE_EXHAUSTED", 0.0)
            ttft = (point.get("ttft_ms") or {}).get("p99")
            text += f"| {factor:g} × | {point['rate']:.1f} | {good:.1f} | {good / most:.0%} | {point['p50_ms']:.0f} | {point['p99_ms']:.0f} | "
            text += f"{f'{ttft:.0f}' if ttft else '-'} | {refused:.1f} | {sum(codes.values()):.1f} |\n"
        for protocol, cost in one["refusals"].items():
            if "us" in cost:
                text += f"\nA call that is refused costs the server {cost['us']:.0f} µs over {protocol} ({cost['refused']} of {cost['of']} were)."
        text += "\n"
    options.out.write_text(text + HOW)
    return text


HOW = """
## What is known of it

Whoever can't be answered in time is refused at the door (RESOURCE_EXHAUSTED, 429, with the time to wait). Beyond
twice the capacity that is not enough: a text is tokenized before its call is refused, which on a server of one core
costs what answers would have needed, and calls that are let in are reckoned too closely. Of a generation only the
wait is predicted, not how long it will run.
"""

if __name__ == "__main__":
    main()
