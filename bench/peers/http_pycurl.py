"""pycurl's multi interface by hand: one multi handle on one epoll, as in curl_multi.c, with json in Python."""

from __future__ import annotations

import json
import os
import select

import pycurl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bench._harness import Numbers
from bench.peers import _completions


class Slot:
    """One request at a time; its handle is used again."""

    def __init__(self, url: str) -> None:
        self.index = -1
        self.pieces: list[bytes] = []
        self.curl = pycurl.Curl()
        self.curl.setopt(pycurl.URL, url)
        self.curl.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json", "Authorization: Bearer bench-key"])
        self.curl.setopt(pycurl.NOSIGNAL, 1)
        if trusted := os.environ.get("SSL_CERT_FILE"):
            self.curl.setopt(pycurl.CAINFO, trusted)
        self.curl.setopt(pycurl.WRITEFUNCTION, self.take)
        self.curl.slot = self

    def take(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def begin(self, index: int, prompt: str) -> None:
        self.index = index
        self.pieces.clear()
        self.curl.setopt(pycurl.POSTFIELDS, json.dumps(_completions.body_of(prompt)))

    def answer(self) -> str:
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        if status != 200:
            raise RuntimeError(f"HTTP {status}")
        text: str = json.loads(b"".join(self.pieces))["choices"][0]["message"]["content"]
        return text


class Client:
    def __init__(self, base_url: str) -> None:
        self.url = f"{base_url}/chat/completions"
        self.slots: list[Slot] = []
        self.timeout_ms = -1
        self.epoll = select.epoll()
        self.watched: set[int] = set()
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, self.on_socket)
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.on_timer)

    def on_socket(self, what: int, fd: int, multi: object, data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self.watched.discard(fd)
            self.epoll.unregister(fd)
            return
        events = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (select.EPOLLOUT if what & pycurl.POLL_OUT else 0)
        if fd in self.watched:
            self.epoll.modify(fd, events)
        else:
            self.watched.add(fd)
            self.epoll.register(fd, events)

    def on_timer(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        while len(self.slots) < min(concurrency, len(prompts)):
            self.slots.append(Slot(self.url))
        self.multi.setopt(pycurl.M_MAXCONNECTS, max(len(self.slots), concurrency))
        waiting = iter(enumerate(prompts))
        for slot in self.slots[:concurrency]:
            if (item := next(waiting, None)) is not None:
                slot.begin(*item)
                self.multi.add_handle(slot.curl)
        left = len(prompts)
        while left:
            events = self.epoll.poll(self.timeout_ms / 1000 if self.timeout_ms >= 0 else None, 256)
            if not events or self.timeout_ms == 0:
                self.timeout_ms = -1
                self.multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            for fd, event in events:
                action = (pycurl.CSELECT_OUT if event & select.EPOLLOUT else 0) | (
                    pycurl.CSELECT_IN if event & ~select.EPOLLOUT else 0
                )
                self.multi.socket_action(fd, action)
            more = 1
            while more:
                more, done, failed = self.multi.info_read()
                for _, code, message in failed:
                    raise RuntimeError(f"curl error {code}: {message}")
                for curl in done:
                    slot = curl.slot
                    answers[slot.index] = slot.answer()
                    self.multi.remove_handle(curl)
                    left -= 1
                    if (item := next(waiting, None)) is not None:
                        slot.begin(*item)
                        self.multi.add_handle(curl)
        return answers

    def close(self) -> None:
        self.multi.close()
        self.epoll.close()


def run_batch(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_batch(Client(spec["base_url"]), spec)


def run_fan(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_fan(Client(spec["base_url"]), spec)


def run_tls(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_tls(lambda: Client(spec["base_url"]), spec)
