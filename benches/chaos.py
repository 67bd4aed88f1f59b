#!/usr/bin/env python3
"""Operators gone wild: for ten minutes models are loaded, swapped, mirrored, promoted, rolled back, unloaded, in random
order from a seed, good versions and broken ones, under mixed traffic; writes docs/chaos.md.

    cargo build --release
    python3 models/fetch.py minilm definitions prompt-injection-small smollm2-135m
    python3 benches/chaos.py --ferry target/release/ferry --models models --minutes 10

Versions 1 and 2 of each model are whole. Version 3 is broken, in another way each time it is used: weights that are
cut short, a configuration that is no JSON, a tokenizer that is missing, an empty folder. Several operators act at the
same time, and wait for each other only where two would move the same model's stable version. The file of API keys is written anew under way, too, right and wrong.

No call may fail, with these exceptions: 503 while its model as a whole was unloaded at some time since the call was sent
(nothing else is 503), 429 where there was no room, 504 where the call's own deadline passed. An operator's command may
be refused, and says so by its exit code. In the end every model is loaded again and says what it said at the
beginning. Exits with 1 otherwise. Standard library only.
"""

import argparse
import asyncio
import collections
import datetime
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(ROOT / "benches")]
import run  # noqa: E402
from soak import MODELS  # noqa: E402
from traffic import SENTENCES, Connection, Traffic, quantile  # noqa: E402

# Exit codes of `ferry admin`: done, a request that is wrong or names what isn't there, refused.
DONE, WRONG, REFUSED = 0, 1, 3


def main():
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ferry-chaos-") as folder:
        sys.exit(asyncio.run(chaos(options, Path(folder))))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--operators", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", action="store_true", help="keep the server's log beside the report")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "chaos.md")
    return parser.parse_args()


class Folder:
    """The models: two whole versions, and one that is broken in some way."""

    def __init__(self, options, at):
        self.source, self.at = options.models, at
        for name in MODELS.values():
            there = at / name
            shutil.copytree(self.source / name, there, ignore=shutil.ignore_patterns("[0-9]*", "head", ".ferry"))
            more = "\n[versions]\nserve = [1]\n"
            more += "[generate]\ncache_mib = 64\n" if name == MODELS["generate"] else ""
            (there / "model.toml").write_text((there / "model.toml").read_text() + more)
            for version in ("1", "2"):
                self.copy(name, there / version)
            self.break_version(name, random.Random(0))

    def copy(self, name, to):
        shutil.copytree(self.source / name / "1", to, ignore=shutil.ignore_patterns(".ferry"))

    def break_version(self, name, draw):
        there = self.at / name / "3"
        shutil.rmtree(there, ignore_errors=True)
        way = draw.choice(("cut short", "no JSON", "a file is missing", "empty"))
        if way == "empty":
            there.mkdir()
            return way
        self.copy(name, there)
        weights = [*there.glob("*.safetensors"), *there.glob("*.gguf")]
        if way == "cut short" or not (there / "config.json").exists():
            os.truncate(weights[0], int(weights[0].stat().st_size * draw.uniform(0.0, 0.99)))
        elif way == "no JSON":
            (there / "config.json").write_text("{" * draw.randint(1, 5000))
        else:
            draw.choice((there / "tokenizer.json", there / "config.json", weights[0])).unlink()
        return way


class Outages:
    """When each model as a whole was out of service, as far as operators know: from when it is asked to be unloaded
    until a load has said that it is done."""

    def __init__(self):
        self.since = {}
        self.until = collections.defaultdict(float)

    def begin(self, model):
        self.since.setdefault(model, time.perf_counter())

    def end(self, model):
        if self.since.pop(model, None) is not None:
            self.until[model] = time.perf_counter()

    def is_out(self, model, since):
        return model in self.since or self.until[model] > since


class Operator:
    """Draws actions and runs them with `ferry admin`."""

    def __init__(self, options, index, admin, folder, outages, keys):
        self.options, self.admin, self.folder, self.outages, self.keys = options, admin, folder, outages, keys
        self.draw = random.Random(options.seed * 1000 + 500 + index)
        self.results, self.failures = collections.Counter(), []
        self.locks = keys.locks

    async def ferry(self, what, *arguments, expected=(DONE, REFUSED)):
        command = [str(self.options.ferry.resolve()), "admin", *map(str, arguments), "--server", self.admin]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            _, error = await asyncio.wait_for(process.communicate(), 180)
        except TimeoutError:
            process.kill()
            self.failures.append(f"{' '.join(command[2:])}: no answer within 180 s")
            return None
        told = {DONE: "done", REFUSED: "refused", WRONG: "wrong request"}.get(process.returncode, "failed")
        if process.returncode not in expected:
            told = "failed"
            self.failures.append(f"{' '.join(command[2:])}: exit {process.returncode}: {error.decode()[-300:]}")
        self.results[what, told] += 1
        return process.returncode

    async def act(self):
        name, version = self.draw.choice(list(MODELS.values())), self.draw.choice((1, 2))
        share = self.draw.choice((1, 10, 50, 100))
        actions = {
            "swap": (6, lambda: self.alone(name, self.ferry, "swap", "swap", name, version)),
            "load": (3, lambda: self.ferry("load", "load", name, version)),
            "warm": (3, lambda: self.ferry("warm", "warm", name, version)),
            "unload a version": (3, lambda: self.alone(name, self.take_out, "unload", name, version)),
            "drain a version": (2, lambda: self.alone(name, self.take_out, "drain", name, version)),
            "canary": (4, lambda: self.trial("canary", name, version, share)),
            "shadow": (4, lambda: self.trial("shadow", name, version, share)),
            "label": (1, lambda: self.ferry("label", "route", name, "--label", f"next={version}")),
            "promote": (2, lambda: self.alone(name, self.ferry, "promote", "promote", name, *self.draw.choice(((), ("--force",))))),
            "rollback": (3, lambda: self.alone(name, self.ferry, "rollback", "rollback", name)),
            "broken version": (4, lambda: self.broken(name)),
            "version that isn't there": (1, lambda: self.ferry("version that isn't there", "swap", name, 77, expected=(WRONG,))),
            "whole model": (2, lambda: self.alone(name, self.whole, name)),
            "keys": (1, self.keys.write),
        }
        (what,) = self.draw.choices(list(actions), [weight for weight, _ in actions.values()])
        await actions[what][1]()

    async def alone(self, name, action, *arguments):
        """One of the actions that change which version is stable; of those, one a model at a time. Else the last
        version may be taken by one operator while another moves to it, which is an outage that was asked for."""
        async with self.locks[name, "stable"]:
            await action(*arguments)

    async def take_out(self, how, name, version):
        if await self.ferry("swap", "swap", name, 3 - version) == DONE:
            await self.ferry(f"{how} a version", how, name, version)

    async def trial(self, how, name, version, share):
        """A candidate. Of the stable version there is none: then the request is wrong."""
        await self.ferry("warm", "warm", name, version)
        await self.ferry(how, "route", name, f"--{how}", f"{version}:{share}", expected=(DONE, REFUSED, WRONG))

    async def broken(self, name):
        async with self.locks[name, "broken"]:
            way = await asyncio.to_thread(self.folder.break_version, name, self.draw)
            what = self.draw.choice(("swap", "warm", "load"))
            await self.ferry(f"broken version: {way}", what, name, 3, expected=(REFUSED, WRONG) if way == "empty" else (REFUSED,))

    async def whole(self, name):
        """Takes a model out of service, and brings it back."""
        self.outages.begin(name)
        await self.ferry("unload the model", self.draw.choice(("unload", "drain")), name)
        await asyncio.sleep(self.draw.uniform(0, 1))
        await self.bring_back(name)

    async def bring_back(self, name):
        await self.ferry("load the model", "load", name)
        if await self.ferry("swap back", "swap", name, 1) == DONE:
            self.outages.end(name)
        else:
            self.failures.append(f"{name} could not be brought back")


class Keys:
    """The file of API keys, written anew while it is used: right, and then half-written."""

    def __init__(self, file, good):
        self.file, self.good = file, good
        self.locks = collections.defaultdict(asyncio.Lock)
        self.written = 0

    async def write(self):
        self.written += 1
        self.file.write_text(self.good + "[[key" if self.written % 2 else self.good)


async def say(server, key):
    """What each model says to one sentence."""
    connection, told = Connection(server.http), {}
    ask = lambda path, body: connection.ask("POST", path, body, {"authorization": f"Bearer {key}"})  # noqa: E731
    told["embed"] = await ask("/v1/embeddings", {"model": MODELS["embed"], "input": SENTENCES[0]})
    told["classify"] = await ask("/ferry.v1.Inference/Classify", {"options": {"model": MODELS["classify"]}, "texts": [SENTENCES[0]]})
    told["rerank"] = await ask("/v1/rerank", {"model": MODELS["rerank"], "query": SENTENCES[0], "documents": SENTENCES[1:3]})
    body = {"model": MODELS["generate"], "prompt": SENTENCES[0], "max_tokens": 12, "temperature": 0}
    told["generate"] = await ask("/v1/completions", body)
    connection.close()
    read = {task: (status, json.loads(content)) for task, (status, _, content) in told.items()}
    if any(status != 200 for status, _ in read.values()):
        return read
    return {
        "embed": read["embed"][1]["data"][0]["embedding"], "classify": read["classify"][1]["rows"][0]["label"],
        "rerank": [row["index"] for row in read["rerank"][1]["results"]], "generate": read["generate"][1]["choices"][0]["text"],
    }


def alike(before, after):
    """Vectors to four digits (batches of other sizes round otherwise), all else exactly."""
    near = lambda one, other: all(abs(a - b) < 1e-4 for a, b in zip(one, other, strict=True))  # noqa: E731
    return all(near(before[task], after[task]) if task == "embed" else before[task] == after[task] for task in before)


async def chaos(options, folder):
    models, keys_file, config = folder / "models", folder / "keys.toml", folder / "ferry.toml"
    models.mkdir()
    versions = Folder(options, models)
    made = await asyncio.create_subprocess_exec(
        str(options.ferry.resolve()), "key", "--tenant", "chaos", "--file", str(keys_file), stdout=asyncio.subprocess.PIPE
    )
    key = (await made.communicate())[0].decode().split()[-1]
    keys = Keys(keys_file, keys_file.read_text())
    config.write_text(f'[auth]\nkeys_file = "{keys_file}"\nopen_metrics = true\nreload_seconds = 1.0\n[models]\nstate_file = "{folder}/routes.json"\n')
    (admin_port,) = run.free_ports(1)
    server = run.Server(options.ferry, models, options=("--config", str(config)), admin_port=admin_port)
    server.log_path = options.out.with_suffix(".log") if options.log else folder / "server.log"
    with server:
        before = await say(server, key)
        outages = Outages()
        traffic = Traffic(server.http, MODELS, options.seed, is_out=outages.is_out)
        traffic.headers = lambda draw: {"authorization": f"Bearer {key}"}
        clients = [asyncio.create_task(traffic.client(index)) for index in range(options.clients)]
        admin = f"http://127.0.0.1:{admin_port}"
        operators = [Operator(options, index, admin, versions, outages, keys) for index in range(options.operators)]
        over = time.monotonic() + options.minutes * 60

        async def operate(operator):
            while time.monotonic() < over:
                await operator.act()
                await asyncio.sleep(operator.draw.expovariate(2.0))

        await asyncio.gather(*map(operate, operators))
        for name in MODELS.values():
            await operators[0].bring_back(name)
        traffic.running = False
        await asyncio.gather(*clients)
        after = await say(server, key)
        left = server.stop()
    faults = []
    commands = sum((operator.failures for operator in operators), [])
    if traffic.failed() or commands:
        faults.append(f"{traffic.failed()} calls and {len(commands)} commands failed")
    if not alike(before, after):
        faults.append("a model says something else than before")
    if left != 0:
        faults.append(f"the server left with exit code {left}")
    report = write_report(options, traffic, operators, commands, faults)
    print(report)
    return int(bool(faults))


def write_report(options, traffic, operators, commands, faults):
    results = sum((operator.results for operator in operators), collections.Counter())
    calls = sum(traffic.ended.values())
    text = f"""# Versions in random order under load

`python3 benches/chaos.py --minutes {options.minutes:g} --seed {options.seed}`, {datetime.date.today()}, {os.cpu_count()} cores: {options.operators} operators,
{options.clients} clients with pauses. What counts as failed is said at the top of `benches/chaos.py`.

**{'; '.join(faults) if faults else f'{sum(results.values())} actions, {calls} calls, none failed; in the end every model says what it said at the beginning.'}**

| action | done | refused | wrong request | failed |
| --- | ---: | ---: | ---: | ---: |
"""
    for what in sorted({what for what, _ in results}):
        text += f"| {what} | {' | '.join(str(results[what, told]) for told in ('done', 'refused', 'not found', 'failed'))} |\n"
    text += "\n| calls | ok | went away | deadline passed | refused | model unloaded | failed | p50, ms | p99, ms |\n"
    text += "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for kind in traffic.kinds:
        counts = [traffic.ended[kind, end] for end in ("ok", "went away", "deadline", "refused", "unavailable", "failed")]
        took = traffic.took[kind]
        times = f"{quantile(took, 0.5) * 1e3:.0f} | {quantile(took, 0.99) * 1e3:.0f}" if took else "- | -"
        text += f"| {kind} | {' | '.join(map(str, counts))} | {times} |\n"
    for failure in sorted(set(traffic.failures + commands))[:12]:
        text += f"\n- {failure}"
    options.out.write_text(text)
    return text


if __name__ == "__main__":
    main()
