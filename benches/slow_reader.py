#!/usr/bin/env python3
"""Measures whether readers that stop reading slow the others, and whether clients that vanish leave
anything behind, on a running Ferry.

    target/release/ferry serve --models models
    python3 benches/slow_reader.py --model smollm2-135m

First eight clients generate in a closed loop for some seconds. Then one more asks for eight long
continuations with their alternatives, and reads nothing; when the server has paused it (the sockets
between hold some megabytes first), the eight are measured again. At last 200 clients go away in
mid-stream, and the cache's blocks in use are read. Standard library only.
"""

import argparse
import asyncio
import json
import re
import socket
import time
import urllib.request


def body(model, tokens, **more):
    return json.dumps(
        {
            "model": model,
            "prompt": "The ferry leaves the harbour at nine, and",
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 1,
            "stream": True,
            **more,
        }
    ).encode()


def request(content):
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: ferry\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def generate(address, content, times, stop_after=None):
    """Reads one stream; notes when each piece came."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request(content))
    pieces = 0
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
                pieces += 1
                if pieces == stop_after:
                    return
    finally:
        writer.close()


async def closed_loop(address, content, times, until):
    while time.perf_counter() < until:
        await generate(address, content, times)


async def measure(address, model, clients, seconds):
    times = []
    begin = time.perf_counter()
    content = body(model, 64)
    loops = [closed_loop(address, content, times, begin + seconds) for _ in range(clients)]
    await asyncio.gather(*loops)
    inside = [when for when in times if when < begin + seconds]
    return len(inside) / seconds


def metric(address, name, label):
    page = urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics").read().decode()
    lines = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", page, re.MULTILINE)
    return sum(float(value) for labels, value in lines if label in labels)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30)
    asked = parser.parse_args()
    address = (asked.host, asked.port)

    await measure(address, asked.model, asked.clients, 3)
    before = await measure(address, asked.model, asked.clients, asked.seconds)
    print(f"{asked.clients} clients alone: {before:.1f} pieces/s")

    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect(address)
    stuck.sendall(request(body(asked.model, 6000, n=8, logprobs=20)))
    waited = time.perf_counter()
    while metric(address, "ferry_sequences", 'state="paused"') < 8:
        await asyncio.sleep(0.2)
        if time.perf_counter() - waited > 300:
            raise SystemExit("the reader that doesn't read was never paused")
    print(f"paused after {time.perf_counter() - waited:.1f} s")
    during = await measure(address, asked.model, asked.clients, asked.seconds)
    paused = metric(address, "ferry_sequences", 'state="paused"')
    print(f"beside a reader that doesn't read: {during:.1f} pieces/s, {during / before:.2f} of before")
    print(f"its sequences are paused: {paused:.0f}")
    stuck.close()

    async def vanish():
        await generate(address, body(asked.model, 500), [], stop_after=3)

    await asyncio.gather(*(vanish() for _ in range(200)))
    left = time.perf_counter()
    while metric(address, "ferry_cache_blocks", 'state="used"') > 0:
        if time.perf_counter() - left > 30:
            raise SystemExit("blocks are still in use after 30 s")
        await asyncio.sleep(0.02)
    waited = (time.perf_counter() - left) * 1e3
    print(f"200 clients vanished; no block is in use {waited:.0f} ms after the last")


asyncio.run(main())
