"""Mixed traffic for the benches in Python: a small HTTP/1.1 client on asyncio, and calls drawn from a seed, each of
which says how it ended. Standard library only.

Answers are looked at: the right number of rows, whole streams, the right fields. Some calls are meant not to get one:
they carry a deadline that may pass, go away before their answer, or stop reading in the middle of a stream.
"""

import asyncio
import collections
import json
import random
import time
from pathlib import Path

SENTENCES = [line for line in (Path(__file__).parent / "sentences.txt").read_text().splitlines() if line]

# How a call may end without anybody being at fault: it went away itself, its deadline passed, or there was no room.
EXPECTED = {"ok", "went away", "deadline", "refused", "unavailable"}


class Broken(Exception):
    """The server closed the connection, or what it sent is no HTTP."""


class Connection:
    """One connection, kept open between requests; opened anew where it isn't there."""

    def __init__(self, address):
        self.host, _, port = address.removeprefix("http://").rpartition(":")
        self.port = int(port)
        self.reader = self.writer = None

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    def abort(self):
        """Goes away at once, as a client does that crashes."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    async def send(self, method, path, body=None, headers=()):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"host": self.host, "content-type": "application/json", "content-length": len(content)} | dict(headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        await self.writer.drain()

    async def head(self):
        """Status and headers of the answer."""
        line = await self.reader.readline()
        parts = line.split(None, 2)
        if len(parts) < 2:
            raise Broken(f"no status: {line!r}")
        headers = {}
        while (line := await self.reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(parts[1]), headers

    async def chunks(self, headers):
        """The body, in the pieces that it comes in."""
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while True:
            line = await self.reader.readline()
            if not line:
                raise Broken("the connection ended in the middle of a body")
            size = int(line, 16)
            piece = await self.reader.readexactly(size + 2)
            if size == 0:
                return
            yield piece[:-2]

    async def ask(self, method, path, body=None, headers=()):
        """A request and its whole answer: status, headers, body."""
        await self.send(method, path, body, headers)
        status, told = await self.head()
        content = b"".join([piece async for piece in self.chunks(told)])
        if told.get("connection") == "close":
            self.close()
        return status, told, content


class Traffic:
    """Clients in a closed loop with pauses, and how their calls ended."""

    def __init__(self, http, models, seed, pause_s=0.1, tokens=24, tenants=150, is_out=lambda model, since: False):
        self.http, self.models, self.seed = http, models, seed
        self.pause_s, self.tokens, self.tenants = pause_s, tokens, tenants
        # Whether a model was out of service at any time since: then, and only then, 503 is right.
        self.is_out = is_out
        self.ended = collections.Counter()
        self.failures = []
        self.took = collections.defaultdict(list)
        self.running = True
        self.resting = asyncio.Event()
        self.resting.set()
        kinds = {
            "embed": (self.embed, 30), "classify": (self.classify, 20), "rerank": (self.rerank, 12),
            "complete": (self.complete, 6), "stream": (self.stream, 10), "abandon": (self.abandon, 5),
            "leave": (self.leave, 5), "hurry": (self.hurry, 8), "explain": (self.explain, 2), "bad": (self.bad, 4),
        }
        needs = {"embed": "embed", "leave": "embed", "hurry": "embed", "classify": "classify", "explain": "classify",
                 "rerank": "rerank", "complete": "generate", "stream": "generate", "abandon": "generate"}
        self.kinds = {name: kind for name, kind in kinds.items() if needs.get(name, "embed") in models}
        self.asks = {name: models[needs.get(name, "embed")] for name in self.kinds}

    async def client(self, index):
        """One client, until `running` is false; it waits while `resting` is not set."""
        draw = random.Random(self.seed * 1000 + index)
        connection = Connection(self.http)
        names, weights = list(self.kinds), [weight for _, weight in self.kinds.values()]
        while self.running:
            await self.resting.wait()
            if not self.running:
                break
            (name,) = draw.choices(names, weights)
            began = time.perf_counter()
            try:
                end = await asyncio.wait_for(self.kinds[name][0](connection, draw), 180)
                if end.startswith("failed: 503") and self.is_out(self.asks[name], began):
                    end = "unavailable"
            except (OSError, Broken, asyncio.IncompleteReadError, ValueError, KeyError, IndexError, TimeoutError) as error:
                end = f"failed: {error!r}"
                connection.abort()
            self.count(name, end, time.perf_counter() - began)
            await asyncio.sleep(draw.expovariate(1 / self.pause_s))
        connection.close()

    def count(self, name, end, took_s):
        kept = end if end in EXPECTED else "failed"
        self.ended[name, kept] += 1
        if kept == "failed" and len(self.failures) < 1000:
            self.failures.append(f"{name}: {end}")
        if kept == "ok":
            self.took[name].append(took_s)

    def failed(self):
        return sum(count for (_, end), count in self.ended.items() if end == "failed")

    def headers(self, draw):
        return {"x-ferry-tenant": f"tenant-{draw.randrange(self.tenants)}"}

    @staticmethod
    def verdict(status, content):
        """How an answer other than 200 is to be taken."""
        return "refused" if status == 429 else f"failed: {status}: {content[:300]!r}"

    def text(self, draw):
        return " ".join(draw.choices(SENTENCES, k=draw.choice((1, 1, 1, 2, 4))))

    async def embed(self, connection, draw):
        texts = [self.text(draw) for _ in range(draw.choice((1, 1, 1, 2, 8)))]
        body = {"model": self.models["embed"], "input": texts}
        status, _, content = await connection.ask("POST", "/v1/embeddings", body, self.headers(draw))
        if status != 200:
            return self.verdict(status, content)
        return "ok" if len(json.loads(content)["data"]) == len(texts) else "failed: rows are missing"

    async def classify(self, connection, draw):
        body = {"options": {"model": self.models["classify"]}, "texts": [self.text(draw) for _ in range(draw.choice((1, 1, 4)))]}
        status, _, content = await connection.ask("POST", "/ferry.v1.Inference/Classify", body, self.headers(draw))
        if status != 200:
            return self.verdict(status, content)
        rows = json.loads(content)["rows"]
        return "ok" if len(rows) == len(body["texts"]) and not any("error" in row for row in rows) else f"failed: {content[:300]!r}"

    async def rerank(self, connection, draw):
        documents = [self.text(draw) for _ in range(draw.choice((2, 5, 10)))]
        body = {"model": self.models["rerank"], "query": self.text(draw), "documents": documents}
        status, _, content = await connection.ask("POST", "/v1/rerank", body, self.headers(draw))
        if status != 200:
            return self.verdict(status, content)
        return "ok" if len(json.loads(content)["results"]) == len(documents) else "failed: documents are missing"

    def prompt(self, draw, **more):
        body = {"model": self.models["generate"], "prompt": self.text(draw), "max_tokens": draw.randint(2, self.tokens)}
        return body | {"temperature": draw.choice((0, 1)), "seed": draw.randrange(1 << 30)} | more

    async def complete(self, connection, draw):
        status, _, content = await connection.ask("POST", "/v1/completions", self.prompt(draw), self.headers(draw))
        if status != 200:
            return self.verdict(status, content)
        return "ok" if json.loads(content)["choices"][0]["finish_reason"] in ("stop", "length") else f"failed: {content[:300]!r}"

    async def stream(self, connection, draw, stop_after=None):
        messages = [{"role": "user", "content": self.text(draw)}]
        body = {name: value for name, value in self.prompt(draw, stream=True).items() if name != "prompt"}
        await connection.send("POST", "/v1/chat/completions", body | {"messages": messages}, self.headers(draw))
        status, told = await connection.head()
        content = b""
        async for piece in connection.chunks(told):
            content += piece
            if stop_after is not None and content.count(b"\n\n") >= stop_after and status == 200:
                connection.abort()
                return "went away"
        if status != 200:
            return self.verdict(status, content)
        return "ok" if content.endswith(b"data: [DONE]\n\n") and b'"error"' not in content else f"failed: a broken stream: {content[-300:]!r}"

    async def abandon(self, connection, draw):
        return await self.stream(connection, draw, stop_after=draw.randint(1, 6))

    async def leave(self, connection, draw):
        """Goes away before the answer."""
        body = {"model": self.models["embed"], "input": [self.text(draw) for _ in range(4)]}
        await connection.send("POST", "/v1/embeddings", body, self.headers(draw))
        await asyncio.sleep(draw.random() * 0.02)
        connection.abort()
        return "went away"

    async def hurry(self, connection, draw):
        """Has a deadline that may pass in any stage."""
        body = {"model": self.models["embed"], "input": [self.text(draw) for _ in range(4)]}
        headers = self.headers(draw) | {"x-request-timeout-ms": draw.randint(1, 60)}
        status, _, content = await connection.ask("POST", "/v1/embeddings", body, headers)
        if status in (200, 504):
            return "ok" if status == 200 else "deadline"
        return self.verdict(status, content)

    async def explain(self, connection, draw):
        text = " ".join(draw.choice(SENTENCES).split()[:7])
        body = {"options": {"model": self.models["classify"]}, "classify": {"text": text}, "samples": 64}
        status, _, content = await connection.ask("POST", "/ferry.v1.Inference/Explain", body, self.headers(draw))
        if status != 200:
            return self.verdict(status, content)
        return "ok" if json.loads(content)["words"] else f"failed: {content[:300]!r}"

    async def bad(self, connection, draw):
        """Is refused for what it says, and harms nobody."""
        body = draw.choice((b"{", b"\xff\xfe", b"[]", b'{"model":"nobody","input":"x"}', b'{"model":7}'))
        status, _, content = await connection.ask("POST", "/v1/embeddings", body, self.headers(draw))
        return "ok" if status in (400, 404) else self.verdict(status, content)


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")
