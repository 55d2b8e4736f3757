"""A provider behind TLS: `python -m bench._tls_server LATENCY_MS`.

Prints two ports of 127.0.0.1: the provider's, and one that tells counters in plain HTTP (GET /stats, as the mock in C).
Ends with its standard input. The answers are those of native/mock_server.c in short.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
import zlib
from pathlib import Path

CERTIFICATE = Path(__file__).resolve().parents[1] / "tests" / "tls"
FILLER = "A bee that finds clover comes home and dances the way. " * 10


class Counts:
    def __init__(self) -> None:
        self.requests = self.connections = self.in_flight = self.max_in_flight = 0

    def text(self) -> bytes:
        return json.dumps({**vars(self), "cpu_s": time.process_time()}).encode()

    def reset(self) -> None:
        self.requests = self.connections = 0
        self.max_in_flight = self.in_flight


class Provider:
    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.counts = Counts()

    async def completions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it."""
        self.counts.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length.partition(b":")[2]))
                await self.answer(body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went, or this program ends
        finally:
            writer.close()

    async def answer(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        counts = self.counts
        counts.requests += 1
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)
        await asyncio.sleep(self.latency_s)
        counts.in_flight -= 1
        prompt: str = json.loads(body)["messages"][-1]["content"]
        text = f"re: {prompt[:64]} [{len(prompt)} bytes, crc {zlib.crc32(prompt.encode()):08x}] {FILLER}"
        reply = json.dumps(
            {
                "id": "chatcmpl-000000000001",
                "object": "chat.completion",
                "created": 1764000000,
                "model": "mock",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"},
                ],
                "usage": {"prompt_tokens": 11, "completion_tokens": 120, "total_tokens": 131},
            },
            separators=(",", ":"),  # the C program looks for "content":"
        ).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(reply), reply)
        )

    async def stats(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        text = self.counts.text()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        if b"reset=1" in head.partition(b"\r\n")[0]:
            self.counts.reset()
        writer.close()


async def main(latency_ms: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE / "localhost.pem", CERTIFICATE / "localhost.key")
    provider = Provider(latency_ms / 1000)
    encrypted = await asyncio.start_server(provider.completions, "127.0.0.1", 0, ssl=context, backlog=4096)
    plain = await asyncio.start_server(provider.stats, "127.0.0.1", 0)
    print(*(server.sockets[0].getsockname()[1] for server in (encrypted, plain)), flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
