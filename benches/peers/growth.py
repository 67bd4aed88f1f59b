"""How cost grows: throughput against length, streams, and models beside one another."""

import embed
import llm
from environment import Unavailable
from worker import Failed

LENGTHS = [16, 32, 64, 128, 256, 512]
STREAMS = [1, 2, 4, 8, 16, 32, 64]
MODELS = [1, 2, 4, 8]
STREAM_MODEL = "smollm2-135m"


class Stage:
    """Stands on the other two stages' sides."""

    def __init__(self, options, ferry, results):
        self.options, self.ferry, self.results = options, ferry, results
        self.embed, self.llm = embed.Stage(options, ferry, results), llm.Stage(options, ferry, results)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.embed.__exit__()
        self.llm.__exit__()

    def prepare(self):
        self.embed.prepare()
        self.llm.prepare()

    def round(self, round_):
        self.lengths(round_)
        self.streams(round_)
        self.models(round_)

    def lengths(self, round_):
        for length in LENGTHS:
            # About as many tokens at every length.
            count = max(8, min(self.options.texts, 16 * self.options.texts // length))
            texts = self.embed.make_texts(str(length), count)
            load = f"length {length}"
            for worker, name, variant in self.embed.ready:
                try:
                    rate = worker.ask("rate", variant=variant, texts=texts["texts"], batch=embed.ROWS)
                    self.results.add("growth", load, name, variant, round_, rate * length, "tokens/s")
                except Failed as why:
                    self.results.skip(f"{name} {variant}", why)
            for precision, model in self.embed.served_models():
                try:
                    rate = self.ferry.in_process(model, texts["path"], self.options.seconds, embed.ROWS)
                    self.results.add("growth", load, "ferry in process", precision, round_, rate * length, "tokens/s")
                except Unavailable as why:
                    self.results.skip(f"ferry {precision}, {load}", why)

    def streams(self, round_):
        weights = self.options.models.resolve() / STREAM_MODEL / "1" / "model.gguf"
        if not weights.exists():
            return
        before = len(self.results.figures)
        self.llm.ferry_once(round_, STREAM_MODEL, STREAMS)
        for engine in llm.ENGINES:
            self.llm.engine(round_, STREAM_MODEL, weights, STREAMS, *engine)
        for one in self.results.figures[before:]:
            one.stage, one.load = "growth", one.load.replace(f"{STREAM_MODEL}, ", "streams ").removesuffix(" streams").removesuffix(" stream")

    def models(self, round_):
        """Copies of one model, each with its share of 32 clients, at the same time."""
        texts = self.embed.texts["mixed"]["path"]
        for count in MODELS:
            names = [f"copy{one}" for one in range(1, count + 1)]
            with self.ferry.server(names) as server:
                loads = [
                    self.ferry.start_bench([
                        "--url", f"http://{server.grpc}", "--model", name, "--texts", texts, "--clients", 32 // count,
                        "--seconds", f"{self.options.seconds:g}",
                    ])
                    for name in names
                ]
                try:
                    reports = [self.ferry.read_bench(load) for load in loads]
                except Unavailable as why:
                    self.results.skip("models beside one another", why)
                    continue
            rate = sum(report["measured"][0]["served_rows_per_second"] for report in reports)
            self.results.add("growth", f"models {count}", "ferry served", "f32", round_, rate, "texts/s")
