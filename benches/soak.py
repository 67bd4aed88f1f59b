#!/usr/bin/env python3
"""Half an hour of everything at once, and whether the server is as it was at the end; writes docs/soak.md.

    cargo build --release
    python3 models/fetch.py minilm definitions prompt-injection-small smollm2-135m
    python3 benches/soak.py --ferry target/release/ferry --models models --minutes 30

Serves two versions of each of four models. Clients send what benches/traffic.py draws over HTTP: embeddings, classes,
rankings, completions and chats, explanations, bad requests; some of them go away before or amid their answers, some
carry deadlines that pass. `ferry bench` calls the same server over gRPC, on new connections again and again; jobs are
submitted, watched and deleted; an operator swaps, loads anew, mirrors to candidates, promotes, rolls back, and tries a
version whose file is cut short.

Memory, descriptors, threads, blocks of the cache and rows that wait are read every few seconds (and kept in target/soak.csv). After a warm-up and at
the end the traffic rests and the server is looked at idle: what differs has leaked. Exits with 1 when memory has grown
by more than --allowed-growth, something is left over, or a call failed. Standard library only.
"""

import argparse
import asyncio
import collections
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(ROOT / "benches")]
import pictures  # noqa: E402
import run  # noqa: E402
from traffic import SENTENCES, Traffic, quantile  # noqa: E402

MODELS = {"embed": "minilm", "classify": "prompt-injection-small", "rerank": "definitions", "generate": "smollm2-135m"}
CONFIG = """
[metrics]
max_tenants = 20
[request_log]
file = "{folder}/requests.jsonl"
max_file_bytes = 4194304
max_files = 2
[models]
state_file = "{folder}/routes.json"
"""
# What the manifests get beside what they say.
MORE = {
    "minilm": "\n[versions]\nserve = [1]\n[drift]\nenabled = true\nlearn_rows = 500\nwindow_rows = 500\nkeep = false\n",
    "prompt-injection-small": "\n[versions]\nserve = [1]\n[cache]\nmax_mib = 4\n",
    "definitions": "\n[versions]\nserve = [1]\n",
    "smollm2-135m": "\n[versions]\nserve = [1]\n[generate]\ncache_mib = 128\n",
}


def main():
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ferry-soak-") as folder:
        sys.exit(asyncio.run(soak(options, Path(folder))))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--minutes", type=float, default=30.0, help="of traffic, after the warm-up")
    parser.add_argument("--warm-up-minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allowed-growth", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "soak.md")
    return parser.parse_args()


def make_models(options, folder):
    """Two whole versions of each model, and a third that is cut short."""
    for name in MODELS.values():
        there = folder / name
        shutil.copytree(options.models / name, there, ignore=shutil.ignore_patterns("[0-9]*", "head", ".ferry"))
        (there / "model.toml").write_text((there / "model.toml").read_text() + MORE[name])
        for version in ("1", "2", "3"):
            shutil.copytree(options.models / name / "1", there / version, ignore=shutil.ignore_patterns(".ferry"))
        for weights in (*(there / "3").glob("*.safetensors"), *(there / "3").glob("*.gguf")):
            os.truncate(weights, weights.stat().st_size // 2)


class Watched:
    """The server's process and its metrics, as they are from time to time."""

    def __init__(self, server):
        self.server, self.pid = server, server.process.pid
        self.began = time.monotonic()
        self.samples = []

    async def look(self):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        mib = lambda key: int(status[key].split()[0]) / 1024  # noqa: E731
        sample = {
            "s": time.monotonic() - self.began, "rss": mib("VmRSS"), "anonymous": mib("RssAnon"),
            "threads": int(status["Threads"]), "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
        }
        page = await asyncio.to_thread(self.page)
        sample |= {
            "blocks": total(page, "ferry_cache_blocks", 'state="used"'), "waiting": total(page, "ferry_waiting_rows"),
            "sequences": total(page, "ferry_sequences"), "jobs": total(page, "ferry_jobs"),
            "job rows": total(page, "ferry_job_waiting_rows"), "series": sum(line[:1] not in ("#", "") for line in page),
        }
        tasks = [line for line in page if line.startswith("ferry_tasks ")]
        if tasks:
            sample["tasks"] = float(tasks[0].split()[1])
        self.samples.append(sample)
        return sample

    def page(self):
        with run.urllib.request.urlopen(f"{self.server.http}/metrics", timeout=60) as answer:
            return answer.read().decode().splitlines()


def total(page, name, label=""):
    found = (line for line in page if line.startswith((name + "{", name + " ")) and label in line)
    return sum(float(line.rpartition(" ")[2]) for line in found)


async def soak(options, folder):
    models, jobs = folder / "models", folder / "jobs"
    models.mkdir()
    make_models(options, models)
    config = folder / "ferry.toml"
    config.write_text(CONFIG.format(folder=folder))
    (admin_port,) = run.free_ports(1)
    serve = ("--config", str(config), "--jobs", str(jobs))
    with run.Server(options.ferry, models, options=serve, admin_port=admin_port) as server:
        watched = Watched(server)
        traffic = Traffic(server.http, MODELS, options.seed, tenants=25)
        clients = [asyncio.create_task(traffic.client(index)) for index in range(options.clients)]
        commands = Commands(options, server, admin_port, folder, traffic)
        others = [asyncio.create_task(part()) for part in (commands.operate, commands.call, commands.submit)]
        looking = asyncio.create_task(look_on(watched, options.every))
        await asyncio.sleep(options.warm_up_minutes * 60)
        idle = [await rest(traffic, commands, watched)]
        print(f"idle after the warm-up: {idle[0]}", flush=True)
        for at in range(3):
            await asyncio.sleep(options.minutes * 20)
            idle.append(await rest(traffic, commands, watched, over=at == 2))
            print(f"idle: {idle[-1]}", flush=True)
            if at == 2:
                break
        looking.cancel()
        await asyncio.gather(*clients, *others)
        left = server.stop()
    faults = judge(options, idle, traffic, commands, left)
    report = write_report(options, watched, idle, traffic, commands, faults)
    print(report)
    return int(bool(faults))


async def look_on(watched, every):
    while True:
        await watched.look()
        await asyncio.sleep(every)


async def rest(traffic, commands, watched, over=False):
    """Lets the traffic rest until nothing runs, and looks at the idle server: medians of ten looks."""
    traffic.running = not over
    traffic.resting.clear() if not over else None
    await commands.pause()
    for _ in range(60):
        await asyncio.sleep(1.0)
        seen = await watched.look()
        if seen["sequences"] == seen["waiting"] == seen["job rows"] == 0:
            break
    # What the allocator gives back, it gives back after a while.
    await asyncio.sleep(10.0)
    looks = []
    for _ in range(10):
        looks.append(await watched.look())
        await asyncio.sleep(0.5)
    if not over:
        traffic.resting.set()
        commands.go_on()
    else:
        commands.end()
    return {key: statistics.median(look[key] for look in looks) for key in looks[0]}


class Commands:
    """What is done with ferry's own commands: operators' actions, calls over gRPC, jobs."""

    def __init__(self, options, server, admin_port, folder, traffic):
        self.options, self.server, self.folder, self.traffic = options, server, folder, traffic
        self.admin = f"http://127.0.0.1:{admin_port}"
        self.done = collections.Counter()
        self.failures = []
        self.may_run = asyncio.Event()
        self.may_run.set()
        self.over = False
        self.busy = 0

    async def pause(self):
        self.may_run.clear()
        while self.busy:
            await asyncio.sleep(0.2)

    def go_on(self):
        self.may_run.set()

    def end(self):
        self.over = True
        self.may_run.set()

    async def ferry(self, what, *arguments, expected=(0,)):
        command = [str(self.options.ferry.resolve()), *map(str, arguments)]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await process.communicate()
        if process.returncode in expected:
            self.done[what] += 1
        else:
            self.failures.append(f"{' '.join(command[1:])}: exit {process.returncode}: {error.decode()[-300:]}")
        return out.decode()

    async def loop(self, part):
        while True:
            await self.may_run.wait()
            if self.over:
                return
            self.busy += 1
            try:
                await part()
            finally:
                self.busy -= 1
            await asyncio.sleep(1.0)

    async def operate(self):
        """Each round ends where it began: version 1 of each model is stable, and alone."""
        models = list(MODELS.values())
        at = 0

        async def part():
            nonlocal at
            name, at = models[at % len(models)], at + 1
            do = lambda what, *more, **kept: self.ferry(what, "admin", *more, "--server", self.admin, **kept)  # noqa: E731
            await do("swap", "swap", name, 2)
            await do("refused swap to a broken version", "swap", name, 3, expected=(3,))
            await asyncio.sleep(2.0)
            await do("load anew", "load", name, 2)
            await do("swap", "swap", name, 1)
            await do("warm", "warm", name, 2)
            await do("shadow", "route", name, "--shadow", "2:30")
            await asyncio.sleep(6.0)
            await do("rollback", "rollback", name)
            await do("warm", "warm", name, 2)
            await do("canary", "route", name, "--canary", "2:30")
            await asyncio.sleep(6.0)
            await do("promote", "promote", name, "--force")
            await do("swap", "swap", name, 1)

        await self.loop(part)

    async def call(self):
        """Calls over gRPC, on connections that are opened and closed."""

        async def part():
            for more in (("--endpoint", "embed", "--model", MODELS["embed"], "--rows", 4),
                         ("--endpoint", "generate", "--model", MODELS["generate"], "--max-tokens", 12),
                         ("--endpoint", "open-inference", "--model", MODELS["embed"])):
                told = await self.ferry(
                    "runs of calls over gRPC", "bench", "--url", f"http://{self.server.grpc}", *more,
                    "--rate", 4, "--seconds", 6, "--rounds", 1, "--warm-up", 0, "--timeout", 180, "--json",
                )
                for point in json.loads(told or "{}").get("measured", []):
                    if point.get("errors"):
                        self.failures.append(f"gRPC {more[1]}: {point['errors_by_code']}")

        await self.loop(part)

    async def submit(self):
        lines = [
            {"id": str(at), "embed": {"options": {"model": MODELS["embed"]}, "texts": [SENTENCES[at % len(SENTENCES)]]}}
            for at in range(60)
        ] + [
            {"custom_id": f"g{at}", "method": "POST", "url": "/v1/completions",
             "body": {"model": MODELS["generate"], "prompt": "All aboard", "max_tokens": 8}}
            for at in range(4)
        ]
        rows = self.folder / "rows.jsonl"
        rows.write_text("\n".join(map(json.dumps, lines)) + "\n")
        url = ("--url", f"http://{self.server.grpc}")

        async def part():
            submitted = await self.ferry("jobs", "jobs", "submit", rows, "--watch", "--json", *url)
            names = [word for word in submitted.replace('"', " ").split() if word.startswith("job_")]
            if names:
                results = await self.ferry("results of jobs", "jobs", "results", names[0], *url)
                if len(results.splitlines()) != len(lines):
                    self.failures.append(f"{names[0]} has {len(results.splitlines())} results")
                await self.ferry("deleted jobs", "jobs", "delete", names[0], *url)
            await asyncio.sleep(5.0)

        await self.loop(part)


def judge(options, idle, traffic, commands, left):
    first, last = idle[0], idle[-1]
    faults = []
    if last["rss"] > first["rss"] * (1 + options.allowed_growth):
        faults.append(f"memory grew from {first['rss']:.0f} to {last['rss']:.0f} MiB")
    # A connection that the last look was made on may still be there.
    if last["descriptors"] > first["descriptors"] + 2:
        faults.append(f"descriptors: {first['descriptors']:.0f}, then {last['descriptors']:.0f}")
    for key in ("threads", "tasks"):
        if last.get(key, 0) > first.get(key, 0) + (2 if key == "tasks" else 0):
            faults.append(f"{key}: {first[key]:.0f}, then {last[key]:.0f}")
    for key in ("blocks", "waiting", "sequences", "job rows"):
        if last[key]:
            faults.append(f"{key} left over: {last[key]:.0f}")
    if traffic.failed() or commands.failures:
        faults.append(f"{traffic.failed()} calls and {len(commands.failures)} commands failed")
    if left != 0:
        faults.append(f"the server left with exit code {left}")
    return faults


def write_report(options, watched, idle, traffic, commands, faults):
    samples = watched.samples
    svg = options.out.with_suffix(".svg")
    minutes = [sample["s"] / 60 for sample in samples]
    svg.write_text(pictures.over_time("Memory of the server, MiB", "minutes", {
        "resident": list(zip(minutes, [sample["rss"] for sample in samples])),
        "of it not of files": list(zip(minutes, [sample["anonymous"] for sample in samples])),
    }))
    busy = [sample for sample in samples if sample["s"] > options.warm_up_minutes * 60]
    names = ["idle after the warm-up", "idle after a third", "idle after two thirds", "idle at the end"]
    keys = [("rss", "resident, MiB"), ("anonymous", "of it anonymous, MiB"), ("descriptors", "descriptors"), ("threads", "threads"),
            ("tasks", "tasks"), ("blocks", "KV blocks in use"), ("sequences", "sequences"), ("waiting", "waiting rows"),
            ("job rows", "waiting rows of jobs"), ("jobs", "jobs kept"), ("series", "series of metrics")]
    keys = [key for key in keys if key[0] in samples[0]]
    text = f"""# Soak

`python3 benches/soak.py --minutes {options.minutes:g}`, {datetime.date.today()}, {os.cpu_count()} cores, clients and other
programs on the same ones; {options.warm_up_minutes:g} min of warm-up before. {options.clients} clients over HTTP with pauses, `ferry bench`
over gRPC, jobs, and an operator, all at once. The traffic rests four times, and the idle server is looked at.

**{'; '.join(faults) if faults else f'Nothing leaked: resident memory {idle[-1]["rss"] / idle[0]["rss"] - 1:+.1%} over {options.minutes:g} minutes, no descriptor, thread, block or row left over, no call failed.'}**

![Memory over time]({svg.name})

| | {' | '.join(names[:len(idle)])} | most under way |
| --- | {'---: | ' * (len(idle) + 1)}
"""
    for key, name in keys:
        values = " | ".join(f"{look[key]:.0f}" for look in idle)
        text += f"| {name} | {values} | {max(sample[key] for sample in busy):.0f} |\n"
    text += "\n| calls over HTTP | ok | went away | deadline passed | refused | failed | p50, ms | p99, ms |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for kind in traffic.kinds:
        counts = [traffic.ended[kind, end] for end in ("ok", "went away", "deadline", "refused", "failed")]
        took = traffic.took[kind]
        text += f"| {kind} | {' | '.join(map(str, counts))} | "
        text += f"{quantile(took, 0.5) * 1e3:.0f} | {quantile(took, 0.99) * 1e3:.0f} |\n" if took else "- | - |\n"
    text += "\nBeside them: " + ", ".join(f"{count} {what}" for what, count in sorted(commands.done.items())) + ".\n"
    for failure in (traffic.failures + commands.failures)[:10]:
        text += f"\n- {failure}"
    options.out.write_text(text)
    (ROOT / "target" / "soak.csv").write_text(
        ",".join(samples[0]) + "\n" + "\n".join(",".join(f"{value:.6g}" for value in sample.values()) for sample in samples) + "\n"
    )
    return text


if __name__ == "__main__":
    main()
