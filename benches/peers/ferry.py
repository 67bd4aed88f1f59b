"""Ferry as one of those that are measured: its models folder for each precision, its server, and the load.

`ferry bench` is the load generator for Ferry and for every other server alike: it costs less of the
machine that it shares with the server than a client in Python would.
"""

import json
import os
import shutil
import subprocess
import sys

from environment import HOME, ROOT, Unavailable

sys.path.insert(0, str(ROOT / "tests" / "clients"))
import run as clients  # noqa: E402

# What the manifest of a precision says; q8_0 is the older way to 8 bits.
PRECISIONS = {"f32": 'compute = "f32"', "bf16": 'compute = "bf16"', "int8": 'compute = "int8"', "q8_0": 'quantize = "q8_0"'}
MANIFEST = """task = "embed"
{precision}

[input]
max_tokens = 512
truncation = "right"

[embed]
pooling = "mean"
normalize = true
"""
COPIES = 8


class Ferry:
    """Ferry's binary, and models for it in a folder of their own."""

    def __init__(self, options):
        self.binary, self.load = options.ferry.resolve(), (options.load or options.ferry).resolve()
        self.source, self.threads = options.models.resolve(), options.threads
        self.models = HOME / "models"

    def version(self):
        done = subprocess.run([self.binary, "--version"], capture_output=True, text=True)
        return done.stdout.strip()

    def prepare(self):
        """Writes the models folder; returns the model of each precision, or why there is none."""
        shutil.rmtree(self.models, ignore_errors=True)
        weights = self.source / "minilm" / "1"
        if not (weights / "model.safetensors").exists():
            sys.exit(f"no weights in {weights}: fetch them first (python3 models/fetch.py minilm)")
        found = {}
        for precision, line in PRECISIONS.items():
            name = f"minilm-{precision}"
            self.add(name, MANIFEST.format(precision=line), weights)
            found[precision] = name if (why := self.refusal(name)) is None else Unavailable(why)
        if isinstance(found["f32"], Unavailable):
            # Before there was a choice there was f32.
            self.add("minilm-f32", MANIFEST.format(precision=""), weights)
            why = self.refusal("minilm-f32")
            found["f32"] = "minilm-f32" if why is None else Unavailable(why)
        plain = (self.models / "minilm-f32" / "model.toml").read_text()
        for copy in range(1, COPIES + 1):
            self.add(f"copy{copy}", plain, weights)
        return found

    def add(self, name, manifest, weights):
        folder = self.models / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(manifest)
        (folder / "1").symlink_to(weights)

    def refusal(self, name):
        """Why the binary does not take a model's manifest; None when it does."""
        command = [self.binary, "inspect", name, "--models", self.models]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment())
        return None if done.returncode == 0 else " ".join(done.stderr.split())[:200] or "refused"

    def environment(self):
        return dict(os.environ, RAYON_NUM_THREADS=str(self.threads))

    def server(self, names, models=None):
        """`ferry serve` of these models, for a `with`."""
        os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        options = [part for name in names for part in ("--model", name)]
        return clients.Server(self.binary, models or self.models, options=options)

    def bench(self, arguments):
        """The report of a `ferry bench`."""
        done = self.start_bench(arguments)
        return self.read_bench(done)

    def start_bench(self, arguments):
        command = [str(self.load), "bench", "--json", "--rounds", "1", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment())

    def read_bench(self, process):
        out, errors = process.communicate()
        if process.returncode != 0:
            raise Unavailable(" ".join(errors.split())[:300])
        for line in errors.splitlines():
            print(f"    {line}", flush=True)
        return json.loads(out)

    def served(self, url, endpoint, model, texts, clients_, seconds):
        """Texts a second, and the latencies, of a server under so many clients."""
        report = self.bench([
            "--url", url, "--endpoint", endpoint, "--model", model, "--texts", texts, "--clients", clients_,
            "--seconds", f"{seconds:g}",
        ])
        one = report["measured"][0]
        return {"rate": one["served_rows_per_second"], "p50_ms": one["p50_ms"], "p99_ms": one["p99_ms"]}

    def in_process(self, model, texts, seconds, rows=32):
        """Texts a second of the model alone."""
        done = subprocess.run(
            [self.binary, "bench", "--json", "--rounds", "1", "--models", self.models, "--model", model,
             "--texts", texts, "--clients", str(rows), "--seconds", f"{seconds:g}"],
            capture_output=True, text=True, env=self.environment(),
        )
        if done.returncode != 0:
            raise Unavailable(" ".join(done.stderr.split())[:300])
        return json.loads(done.stdout)["measured"][0]["in_process_rows_per_second"]

    def streamed(self, url, model, texts, clients_, seconds, tokens):
        """Streamed completions, on whichever server: tokens read and written a second, and times."""
        report = self.bench([
            "--url", url, "--endpoint", "completions", "--model", model, "--texts", texts, "--clients", clients_,
            "--seconds", f"{seconds:g}", "--max-tokens", tokens,
        ])
        return report["measured"][0]
