"""Embeddings: MiniLM on short texts of mixed length and on long ones, in process and served."""

import contextlib
import json
import shutil
import statistics
import urllib.request

from environment import HOME, Unavailable, python_for
from ferry import clients
from tei import Tei
from worker import Failed, Worker

ROWS = 32
SHOWN = 200  # texts whose vectors are held against f32's

# Engine, what it is called, its variants.
IN_PROCESS = [
    ("onnx_runtime", "ONNX Runtime", ["f32", "f32-fused", "int8-tensor", "int8-channel"]),
    ("open_vino", "OpenVINO", ["f32", "bf16", "int8-weights", "int8-weights-bf16"]),
    ("sentence_transformers_", "sentence-transformers", ["f32", "bf16"]),
]


class Stage:
    def __init__(self, options, ferry, results):
        self.options, self.ferry, self.results = options, ferry, results
        self.workers, self.ready, self.models = {}, [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()

    def worker(self, engine):
        if engine not in self.workers:
            # The maker of texts needs no more than a tokenizer, which that one has.
            environment = "onnx_runtime" if engine == "texts" else engine
            python = python_for(environment, self.options.python)
            self.workers[engine] = Worker(python, engine, self.options.threads, HOME / "logs" / f"{engine}.log")
        return self.workers[engine]

    def prepare(self):
        options = self.options
        self.model = options.models.resolve() / "minilm" / "1"
        self.tokenizer = str(self.model / "tokenizer.json")
        self.texts = {
            "mixed": self.make_texts("mixed", options.texts),
            "long": self.make_texts("long", max(8, options.texts // 10)),
        }
        self.models = self.ferry.prepare()
        for precision, found in self.models.items():
            if isinstance(found, Unavailable):
                self.results.skip(f"ferry {precision}", found)
        self.onnx = HOME / "minilm.onnx"
        self.load_peers()

    def make_texts(self, kind, count):
        """A file of texts, and the texts; the engine that has a tokenizer makes them."""
        made = self.worker("texts").ask(
            "make", tokenizer=self.tokenizer, sentences=str(self.options.root / "benches" / "sentences.txt"),
            kind=kind, count=count,
        )
        path = HOME / f"texts-{kind}-{count}.txt"
        path.write_text("\n".join(made["texts"]) + "\n", encoding="utf-8")
        about = f"{count} texts of {made['least']}–{made['most']} tokens, {made['mean']:.1f} on average"
        self.results.notes.append(f"{kind}: {about}")
        return {"path": path, "texts": made["texts"], "about": about}

    def load_peers(self):
        if not self.export():
            return
        for engine, name, variants in IN_PROCESS:
            if self.options.peers and engine not in self.options.peers:
                continue
            try:
                worker = self.worker(engine)
                self.results.versions[name] = worker.ask("version")
            except (Failed, Unavailable) as why:
                self.results.skip(name, why)
                continue
            for variant in variants:
                model = str(self.model if engine == "sentence_transformers_" else self.onnx)
                try:
                    worker.ask("load", variant=variant, tokenizer=self.tokenizer, model=model, threads=self.options.threads)
                    self.ready.append((worker, name, variant))
                except Failed as why:
                    self.results.skip(f"{name} {variant}", why)

    def export(self):
        """The ONNX files, made once where torch is."""
        fused = self.onnx.with_name("minilm-f32-fused.onnx")
        try:
            if not self.onnx.exists():
                self.worker("sentence_transformers_").ask("export", model=str(self.model), out=str(self.onnx))
            if not fused.exists():
                self.worker("sentence_transformers_").ask("fuse", model=str(self.onnx), out=str(fused))
        except (Failed, Unavailable) as why:
            self.results.skip("export to ONNX", why)
        return self.onnx.exists()

    def compare_vectors(self):
        """The cosine of each side's vectors to those of f32."""
        texts = self.texts["mixed"]["texts"][:SHOWN]
        reference = None
        for worker, name, variant in self.ready:
            vectors = worker.ask("vectors", variant=variant, texts=texts)
            if reference is None and variant == "f32":
                reference = vectors
            if reference:
                self.results.cosines[(name, variant)] = cosines(vectors, reference)
        for precision, model in self.served_models():
            with self.ferry.server([model]) as server:
                vectors = embed_over_http(server.http, model, texts)
            reference = reference or vectors
            self.results.cosines[("ferry served", precision)] = cosines(vectors, reference)
            self.results.cosines[("ferry in process", precision)] = cosines(vectors, reference)

    def served_models(self):
        return [(precision, model) for precision, model in self.models.items() if not isinstance(model, Unavailable)]

    def round(self, round_):
        steps = [lambda one=one: self.peer(round_, *one) for one in self.ready]
        steps += [lambda one=one: self.ferry_once(round_, *one) for one in self.served_models()]
        steps += [lambda: self.triton(round_), lambda: self.tei(round_)]
        # Who goes first alternates.
        for step in steps if round_ % 2 else steps[::-1]:
            step()

    def peer(self, round_, worker, name, variant):
        add = self.results.add
        try:
            for kind, texts in self.texts.items():
                rate = worker.ask("rate", variant=variant, texts=texts["texts"], batch=ROWS)
                add("embed", f"{kind}, in process", name, variant, round_, rate, "texts/s")
            times = worker.ask("latency", variant=variant, texts=self.texts["mixed"]["texts"][: self.options.alone])
            add("embed", "one text at a time", name, variant, round_, statistics.median(times), "ms")
        except Failed as why:
            self.results.skip(f"{name} {variant}", why)

    def ferry_once(self, round_, precision, model):
        seconds, add = self.options.seconds, self.results.add
        try:
            for kind, texts in self.texts.items():
                rate = self.ferry.in_process(model, texts["path"], seconds, ROWS)
                add("embed", f"{kind}, in process", "ferry in process", precision, round_, rate, "texts/s")
            with self.ferry.server([model]) as server:
                self.serve(round_, "ferry served", precision, f"http://{server.grpc}", "embed", model)
        except Unavailable as why:
            self.results.skip(f"ferry {precision}", why)

    def serve(self, round_, side, precision, url, endpoint, model):
        """The load on a server, the same on every one."""
        seconds, add = self.options.seconds, self.results.add
        mixed, long = self.texts["mixed"]["path"], self.texts["long"]["path"]
        for count in self.options.clients:
            found = self.ferry.served(url, endpoint, model, mixed, count, seconds)
            add("embed", f"mixed, {count} clients", side, precision, round_, found["rate"], "texts/s")
            add("embed", f"mixed, {count} clients, p99", side, precision, round_, found["p99_ms"], "ms")
        found = self.ferry.served(url, endpoint, model, long, ROWS, seconds)
        add("embed", f"long, {ROWS} clients", side, precision, round_, found["rate"], "texts/s")
        found = self.ferry.served(url, endpoint, model, mixed, 1, seconds)
        add("embed", "one text at a time", side, precision, round_, found["p50_ms"], "ms")

    def triton(self, round_):
        name = "Triton (ONNX Runtime)"
        if name in self.results.skipped or (self.options.peers and "pytriton_server" not in self.options.peers):
            return
        grpc, http, metrics = clients.free_ports(3)
        try:
            worker = self.worker("pytriton_server")
            self.results.versions[name] = worker.ask("version")
            worker.ask(
                "start", model=str(self.onnx), tokenizer=self.tokenizer, threads=self.options.threads, grpc_port=grpc,
                http_port=http, metrics_port=metrics,
            )
            try:
                self.serve(round_, name, "f32", f"http://127.0.0.1:{grpc}", "open-inference", "minilm")
            finally:
                worker.ask("stop")
        except (Failed, Unavailable) as why:
            self.results.skip(name, why)

    def tei(self, round_):
        name = "text-embeddings-inference"
        if name in self.results.skipped or (self.options.peers and "tei" not in self.options.peers):
            return
        binary = shutil.which(self.options.tei)
        if not binary:
            why = "no text-embeddings-router on the path (--tei): it is in no package registry; build it from source"
            self.results.skip(name, why)
            return
        with contextlib.ExitStack() as stack:
            try:
                server = stack.enter_context(Tei(binary, self.model))
                self.results.versions[name] = server.version
                self.serve(round_, name, "f32", server.http, "tei", "minilm")
            except Unavailable as why:
                self.results.skip(name, why)


def embed_over_http(http, model, texts):
    vectors = []
    for first in range(0, len(texts), ROWS):
        body = json.dumps({"model": model, "input": texts[first : first + ROWS]}).encode()
        request = urllib.request.Request(f"{http}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            vectors += [one["embedding"] for one in json.load(answer)["data"]]
    return vectors


def cosines(vectors, reference):
    found = [
        sum(a * b for a, b in zip(one, other)) / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
        for one, other in zip(vectors, reference)
    ]
    return {"mean": sum(found) / len(found), "least": min(found)}
