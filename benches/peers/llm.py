"""Models that write: reading prompts, and writing with one and with many streams, on the same GGUF files."""

import contextlib
import itertools
import shutil
import sys

from environment import HOME, ROOT, Unavailable, python_for
from worker import Failed, Worker

sys.path.insert(0, str(ROOT / "benches"))
import llama_server  # noqa: E402

MODELS = ["gemma3-270m", "smollm2-135m"]
STREAMS = [1, 8, 16, 32]
PROMPT_WORDS, SHORT_WORDS = 200, 16
ENGINES = [("llama_cpp_", "llama.cpp in process"), ("mistral_rs", "mistral.rs in process")]


class Stage:
    def __init__(self, options, ferry, results):
        self.options, self.ferry, self.results = options, ferry, results
        self.workers = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()

    def prepare(self):
        for engine, name in ENGINES:
            if self.options.peers and engine not in self.options.peers:
                continue
            try:
                python = python_for(engine, self.options.python)
                worker = Worker(python, engine, self.options.threads, HOME / "logs" / f"{engine}.log")
                self.workers[engine] = worker
                self.results.versions[name] = worker.ask("version")
            except (Failed, Unavailable) as why:
                self.results.skip(name, why)
        self.llama_server = shutil.which(self.options.llama_server)
        if not self.llama_server:
            self.results.skip("llama-server", "not found; give --llama-server PATH")

    def round(self, round_):
        for model in MODELS:
            weights = self.options.models.resolve() / model / "1" / "model.gguf"
            if not weights.exists():
                self.results.skip(model, f"no {weights.name}: python3 models/fetch.py decoders")
                continue
            steps = [lambda: self.ferry_once(round_, model, STREAMS)]
            steps += [lambda one=one: self.engine(round_, model, weights, STREAMS, *one) for one in ENGINES]
            steps.append(lambda: self.server_once(round_, model, weights, STREAMS))
            for step in steps if round_ % 2 else steps[::-1]:
                step()

    def prompts(self, words, round_, load, count):
        """Distinct prompts, the same for every side; a file of them, so that no cache has seen one before."""
        made = list(itertools.islice(llama_server.prompts(words, 0, f"{round_} {load}"), count))
        path = HOME / "prompts.txt"
        path.write_text("\n".join(made) + "\n")
        return made, path

    def ferry_once(self, round_, model, streams):
        try:
            with self.ferry.server([model], self.options.models.resolve()) as server:
                self.serve(round_, "ferry served", server.http, model, streams)
        except Unavailable as why:
            self.results.skip(f"ferry, {model}", why)

    def server_once(self, round_, model, weights, streams):
        if not self.llama_server or (self.options.peers and "llama_server" not in self.options.peers):
            return
        options = llama_server_options(self.options, self.llama_server)
        self.results.versions["llama-server"] = llama_server.llama_version(options)
        # Slots for each number of streams, as its own users would set it.
        for count in streams:
            try:
                with llama_server.LlamaServer(weights, count, options) as server:
                    self.serve(round_, "llama-server", server.http, model, [count])
            except Unavailable as why:
                self.results.skip(f"llama-server, {model}", why)

    def serve(self, round_, side, http, model, streams):
        """The load on a server, the same on every one."""
        seconds, add = self.options.seconds, self.results.add
        for count in streams:
            if count == 1:
                _, path = self.prompts(PROMPT_WORDS, round_, f"{model} prefill", 400)
                found = self.ferry.streamed(http, model, path, 1, seconds, 1)
                add("llm", f"{model}, prefill", side, "gguf", round_, found["read_tokens_per_second"] or 0.0, "tokens/s")
            _, path = self.prompts(SHORT_WORDS, round_, f"{model} {count}", 2000)
            tokens = self.options.tokens
            # Many streams run in step: a window must see them read and write more than once.
            window = seconds if count == 1 else 3 * seconds
            found = self.ferry.streamed(http, model, path, count, window, tokens)
            add("llm", decode_load(model, count), side, "gguf", round_, found["written_tokens_per_second"] or 0.0, "tokens/s")

    def engine(self, round_, model, weights, streams, engine, name):
        worker = self.workers.get(engine)
        if worker is None or f"{name}, {model}" in self.results.skipped:
            return
        try:
            worker.ask("load", model=str(weights), threads=self.options.threads)
        except Failed as why:
            self.results.skip(f"{name}, {model}", why)
            return
        for count in streams:
            if count == 1:
                prompts, _ = self.prompts(PROMPT_WORDS, round_, f"{model} prefill", self.options.alone // 10 + 1)
                self.ask(worker, round_, name, f"{model}, prefill", lambda: worker.ask("prefill", prompts=prompts))
            short, _ = self.prompts(SHORT_WORDS, round_, f"{model} {count}", count)
            decode = lambda: worker.ask("decode", prompts=short, tokens=self.options.tokens)["tokens_per_s"]  # noqa: E731
            self.ask(worker, round_, name, decode_load(model, count), decode)
        with contextlib.suppress(Failed):
            worker.ask("unload")

    def ask(self, worker, round_, name, load, measure):
        """One figure of an engine; what it can't do is left out from then on, the rest goes on."""
        if f"{name}, {load}" in self.results.skipped or worker.process.poll() is not None:
            return
        try:
            self.results.add("llm", load, name, "gguf", round_, measure(), "tokens/s")
        except Failed as why:
            self.results.skip(f"{name}, {load}", why)


def decode_load(model, streams):
    return f"{model}, {streams} stream{'s' if streams > 1 else ''}"


def llama_server_options(options, binary):
    """What benches/llama_server.py's server wants to know."""
    from argparse import Namespace

    return Namespace(llama_server=binary, threads=options.threads, llama_option=[], shared_words=0)
