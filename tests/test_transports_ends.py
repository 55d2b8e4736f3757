"""How exchanges over the transports end before their time: timeouts, broken connections, cancellation, loops and threads that are gone."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import httpx2
import pytest
import trio
from clients import ASYNC, OURS, PLAIN, WAYS, ChunkPeer, Way, assert_no_request_left
from faults import FaultServer, Step, chunked, fin, flood, head, pause, reset, send, stall, whole
from flows import Unwatching, patiently, prints, run_on

import graphbit
from graphbit import transports
from graphbit.transports import AsyncHttpx2Transport, AsyncHttpxTransport, HttpxTransport


class Server(FaultServer):
    peer_class = ChunkPeer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        yield it
        assert_no_request_left()


@pytest.fixture
def fresh() -> Iterator[None]:
    """A runtime of its own."""
    from graphbit import _queue as runtime_queue

    graphbit.shutdown()
    before = runtime_queue.settings()
    yield
    graphbit.shutdown()
    runtime_queue.configure(before)


# -------------------------------------------------------------------------------------------------------- exceptions

HALF = head("200 OK", "Content-Length: 100") + b"half"


@WAYS
@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ([fin], ["RemoteProtocolError"]),
        ([reset], ["ReadError"]),
        ([send(b"HTTP/1.1 200 OK\r\nContent-"), fin], ["RemoteProtocolError"]),
        ([send(HALF), fin], ["RemoteProtocolError"]),
        ([send(HALF), reset], ["ReadError"]),
        (
            [send(head("200 OK", "Transfer-Encoding: chunked") + chunked(b"abc", last=b"")), fin],
            ["RemoteProtocolError"],
        ),
        ([send(head("200 OK", "Transfer-Encoding: chunked") + b"zz\r\nabc"), fin], ["RemoteProtocolError"]),
        ([send(b"SSH-2.0-OpenSSH\r\n\r\n"), fin], ["RemoteProtocolError"]),
        ([send(head("200 OK", "Content-Length: 5", "Content-Length: 6") + b"abcdef")], ["RemoteProtocolError"]),
        ([stall], ["ReadTimeout"]),
        ([send(HALF), stall], ["ReadTimeout"]),
    ],
    ids=lambda it: None if isinstance(it, list) and callable(it[0]) else it[0],
)
def test_a_connection_that_fails_is_the_error_that_httpx_has_for_it(
    way: Way, server: Server, steps: list[Step], names: list[str]
) -> None:
    server.script(*steps)
    with way.talk(timeout=0.2) as talk:
        with pytest.raises(way.error(names[0])) as caught:
            talk.request("POST", f"{server.url}/path", content=b"body")
        assert str(caught.value.request.url).endswith("/path")
        assert type(caught.value).__name__ == names[0]
        assert talk.request("GET", server.url).status_code == 200
    if way.is_ours:
        assert isinstance(caught.value.__cause__, graphbit.RequestError)


@WAYS
def test_nobody_listens(way: Way) -> None:
    with socket.socket() as taken, way.talk() as talk:
        taken.bind(("127.0.0.1", 0))  # and never listens: nobody else can take it and listen there
        for url in (f"http://127.0.0.1:{taken.getsockname()[1]}/", "http://no-such-host.invalid/"):
            with pytest.raises(way.error("ConnectError")):
                talk.request("GET", url)


@WAYS
@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "//127.0.0.1/", "/path", "http:///path"])
def test_a_url_that_is_none_for_http(way: Way, url: str) -> None:
    with way.talk() as talk, pytest.raises(way.error("UnsupportedProtocol")):
        talk.request("GET", url)


@OURS
@pytest.mark.parametrize("header", [("X", "a\r\nY: b"), ("X", "a\0Y: b"), ("X Y", "a"), ("", "a")])
def test_a_header_that_is_none_is_refused(way: Way, server: Server, header: tuple[str, str]) -> None:
    with way.talk() as talk, pytest.raises(way.error("LocalProtocolError")):
        talk.request("GET", server.url, headers=[header])
    assert not server.requests


@WAYS
def test_a_read_that_takes_too_long_in_the_middle_of_a_body(way: Way, server: Server) -> None:
    server.script(send(head("200 OK", "Content-Length: 100") + b"some"), stall)
    seen: list[bytes] = []
    with way.talk(timeout=way.module.Timeout(5, read=0.1)) as talk, pytest.raises(way.error("ReadTimeout")):
        talk.pieces("GET", server.url, seen.append)
    assert seen == [b"some"]
    server.wait_until_closed()


@WAYS
def test_a_connection_that_is_not_made_in_time(way: Way) -> None:
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue is full: nobody else gets in
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        talk = stack.enter_context(way.talk(timeout=way.module.Timeout(5, connect=0.1)))
        with pytest.raises(way.error("ConnectTimeout")):
            talk.request("GET", f"http://127.0.0.1:{deaf.getsockname()[1]}/")


@WAYS
@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_that_takes_nothing_in(way: Way, streamed: bool) -> None:
    class DeafPeer(ChunkPeer):
        def read(self) -> Any:
            self.server.over.wait()
            self.is_over = True

    with FaultServer() as server:
        server.peer_class = DeafPeer
        with way.talk(timeout=way.module.Timeout(5, write=0.2)) as talk:
            body = b"x" * 50_000_000
            content = way.body(body[:1_000_000] for _ in range(50)) if streamed else body
            with pytest.raises(way.error("WriteTimeout")):
                talk.request("POST", server.url, content=content)
        server.over.set()


@OURS
def test_a_read_is_timed_from_the_requests_end(way: Way, server: Server) -> None:
    """Whatever the timeout for writing is."""
    server.otherwise(stall)
    with way.talk(timeout=way.module.Timeout(None, read=0.1)) as talk:
        for content in (b"x" * 3_000_000, way.body(b"x" * 100_000 for _ in range(30))):
            with pytest.raises(way.error("ReadTimeout")):
                talk.request("POST", server.url, content=content)


@OURS
def test_a_body_whose_pieces_take_long_is_not_late(way: Way, server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            threading.Event().wait(0.15)  # longer than any timeout: time itself is what is tested
            yield b"x"

    with way.talk(timeout=0.1) as talk:
        assert talk.request("POST", server.url, content=way.body(pieces())).status_code == 200


@OURS
@pytest.mark.usefixtures("fresh")
def test_no_connection_is_free_in_time(way: Way, server: Server) -> None:
    graphbit.configure_runtime(max_connections_per_host=1)
    gate = threading.Event()
    server.script(pause(gate), send(whole()))
    with way.talk() as first, way.talk(timeout=way.module.Timeout(5, pool=0.1)) as second:
        holder = threading.Thread(target=first.request, args=("GET", server.url))
        holder.start()
        server.wait_for_requests(1)
        with pytest.raises(way.error("PoolTimeout")):
            second.request("GET", server.url)
        gate.set()
        holder.join()
        assert second.request("GET", server.url).status_code == 200


# ------------------------------------------------------------------------------------------------------- cancellation


@ASYNC
@pytest.mark.parametrize("when", ["before the head", "in the body", "while sending"])
def test_a_task_that_is_cancelled_closes_its_connection(way: Way, server: Server, when: str) -> None:
    first = [] if when == "before the head" else [send(head("200 OK", "Transfer-Encoding: chunked") + b"1\r\na\r\n")]
    server.script(*first, stall)
    reached = threading.Event()

    async def never_ends() -> Any:
        yield b"x"
        reached.set()
        await asyncio.Event().wait()

    async def main() -> None:
        async with way.module.AsyncClient(transport=way.transport()) as client:

            async def get() -> None:
                content = never_ends() if when == "while sending" else b""
                async with client.stream("POST", server.url, content=content) as response:
                    async for _ in response.aiter_raw():
                        reached.set()

            task = asyncio.create_task(get())
            while not (server.requests if when == "before the head" else reached.is_set()):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if when != "while sending":
                await asyncio.to_thread(server.wait_until_closed)

    asyncio.run(patiently(main()))
    assert_no_request_left()


@ASYNC
def test_a_timeout_of_asyncio_ends_a_request(way: Way, server: Server) -> None:
    server.script(stall)

    async def main() -> None:
        async with way.module.AsyncClient(transport=way.transport()) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.get(server.url), 0.05)

    asyncio.run(main())
    server.wait_until_closed()


@OURS
def test_a_response_that_is_dropped_lets_its_connection_go(way: Way, server: Server) -> None:
    server.otherwise(send(head("200 OK", "Transfer-Encoding: chunked")), flood(b"1\r\na\r\n", 0.001))
    with way.talk() as talk:
        response = talk.do(talk.client.send(talk.client.build_request("GET", server.url), stream=True))
        assert response.status_code == 200
        del response
        gc.collect()
        server.wait_until_closed()


@PLAIN
def test_a_response_may_be_read_and_closed_by_another_thread(way: Way, server: Server) -> None:
    server.script(send(whole(b"x" * 1000)))
    server.script(send(HALF), stall)
    found: list[bytes] = []
    with way.talk() as talk:
        send_ = talk.client.send
        response = send_(talk.client.build_request("GET", server.url), stream=True)
        reader = threading.Thread(target=lambda: found.append(response.read()))
        reader.start()
        reader.join(10)
        assert found == [b"x" * 1000]

        response = send_(talk.client.build_request("GET", server.url), stream=True)
        waits = threading.Event()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                for _ in response.iter_raw():
                    waits.set()
            except BaseException as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert waits.wait(10)
        response.close()
        reader.join(10)
        assert len(errors) == 1
        server.wait_until_closed()


@PLAIN
def test_a_response_may_be_closed_at_any_moment(way: Way, server: Server) -> None:
    server.otherwise(
        send(head("200 OK", "Transfer-Encoding: chunked")), *[send(b"1\r\na\r\n")] * 20, send(b"0\r\n\r\n")
    )
    known = (way.error("TransportError"), way.error("StreamError"))
    wrong: list[BaseException] = []

    def read(response: Any) -> None:
        try:
            for _ in response.iter_raw():
                pass
        except known:
            pass
        except BaseException as error:
            wrong.append(error)

    with way.talk() as talk:
        for moment in range(150):
            response = talk.client.send(talk.client.build_request("GET", server.url), stream=True)
            reader = threading.Thread(target=read, args=(response,))
            reader.start()
            for _ in range(moment * 20):  # a little later each time
                pass
            response.close()
            reader.join(10)
            assert not reader.is_alive()
        assert talk.request("GET", server.url).status_code == 200
    assert not wrong


# ------------------------------------------------------------------------------------------------------ loops and threads


@PLAIN
def test_many_threads_share_a_client(way: Way, server: Server) -> None:
    wrong: list[Any] = []
    with way.talk() as talk:

        def work(number: int) -> None:
            for i in range(30):
                body = b"%d %d" % (number, i)
                if talk.client.post(server.url, content=body).status_code != 200:
                    wrong.append(body)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not wrong
    assert sorted(it.body for it in server.requests) == sorted(b"%d %d" % (n, i) for n in range(12) for i in range(30))


@ASYNC
@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, Unwatching], ids=["watching", "unwatching"])
def test_one_transport_outlives_its_loops(way: Way, server: Server, kind: Any) -> None:
    transport = way.transport()
    left: list[Any] = []
    server.otherwise(send(whole(b"x" * 100_000)))

    async def main(*last: Step) -> int:
        client = way.module.AsyncClient(transport=transport)  # nobody closes it
        answers = await asyncio.gather(*(client.get(server.url) for _ in range(5)))
        if last:
            server.script(*last)
        left.append(await client.send(client.build_request("GET", server.url), stream=True))
        return sum(len(it.content) for it in answers)

    for _ in range(3):
        assert run_on(kind(), main()) == 500_000
    run_on(kind(), main(send(HALF), stall))

    async def close_all() -> None:
        for response in left:
            await response.aclose()

    run_on(kind(), close_all())  # of other loops, which are closed
    left.clear()
    gc.collect()
    assert_no_request_left()


@ASYNC
def test_a_response_of_another_loop_says_so(way: Way, server: Server) -> None:
    server.script(send(HALF), stall)

    async def begin() -> Any:
        client = way.module.AsyncClient(transport=way.transport())
        return await client.send(client.build_request("GET", server.url), stream=True)

    response = asyncio.run(begin())

    async def read() -> bytes:
        return await response.aread()  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(read())
    server.wait_until_closed()


@OURS
def test_both_kinds_work_inside_of_a_running_loop(way: Way, server: Server) -> None:
    """As in a notebook, whose cells run on a loop."""

    async def cell() -> int:
        if way.is_async:
            async with way.module.AsyncClient(transport=way.transport()) as client:
                return int((await client.get(server.url)).status_code)
        with way.module.Client(transport=way.transport()) as client:
            return int(client.get(server.url).status_code)

    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(cell())))
    thread.start()
    thread.join(10)
    assert [*found, asyncio.run(cell())] == [200, 200]


@ASYNC
def test_loops_in_several_threads_share_a_transport(way: Way, server: Server) -> None:
    transport = way.transport()

    async def main() -> list[int]:
        client = way.module.AsyncClient(transport=transport)
        return [it.status_code for it in await asyncio.gather(*(client.get(server.url) for _ in range(20)))]

    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(main()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [[200] * 20] * 4


@pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_client_of_the_other_kind_is_refused(module: Any) -> None:
    kind = module.__name__.capitalize()
    plain, on_loops = getattr(transports, f"{kind}Transport")(), getattr(transports, f"Async{kind}Transport")()
    client = module.Client(transport=on_loops)
    for call in (client.__enter__, lambda: module.Client(transport=on_loops).get("http://127.0.0.1/")):
        with pytest.raises(
            TypeError, match=rf"^Async{kind}Transport is for an AsyncClient; a Client takes {kind}Transport\(\)"
        ):
            call()

    async def main() -> None:
        words = rf"^{kind}Transport is for a Client; an AsyncClient takes Async{kind}Transport\(\)"
        with pytest.raises(TypeError, match=words):
            await module.AsyncClient(transport=plain).__aenter__()
        with pytest.raises(TypeError, match=words):
            await module.AsyncClient(transport=plain).get("http://127.0.0.1/")

    asyncio.run(main())


@ASYNC
def test_trio_is_refused(way: Way, server: Server) -> None:
    async def main() -> None:
        async with way.module.AsyncClient(transport=way.transport()) as client:
            with pytest.raises(RuntimeError, match="running asyncio event loop; under trio"):
                await client.get(server.url)

    trio.run(main)
    assert not server.requests


@OURS
def test_a_plain_callback_of_a_workflow_may_send(way: Way, server: Server) -> None:
    from flows import workflow

    from graphbit import Executor

    def ask() -> int:
        with way.talk() as talk:
            return int(talk.request("GET", server.url).status_code)

    assert Executor().execute(workflow(a=ask, b=ask))["a"] == 200


# ---------------------------------------------------------------------------------------------------------- the runtime


@OURS
@pytest.mark.usefixtures("fresh")
def test_a_shutdown_ends_what_is_on_its_way_and_the_transport_works_again(way: Way, server: Server) -> None:
    for steps in ([stall], [send(HALF), stall]):
        server.script(*steps)
        with way.talk() as talk:
            asked = len(server.requests)
            ender = threading.Thread(target=lambda n=asked: (server.wait_for_requests(n + 1), graphbit.shutdown()))
            ender.start()
            with pytest.raises(way.error("NetworkError")) as caught:
                talk.request("GET", server.url)
            ender.join()
            assert isinstance(caught.value.__cause__, graphbit.RuntimeClosedError)
            assert talk.request("GET", server.url).status_code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_begins_anew(server: Server) -> None:
    code = f"""
import os, httpx, graphbit
from graphbit.transports import HttpxTransport
client = httpx.Client(transport=HttpxTransport())
assert client.get("{server.url}").status_code == 200
left = client.send(client.build_request("GET", "{server.url}"), stream=True)
pid = os.fork()
if pid == 0:
    assert client.get("{server.url}").status_code == 200
    left.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(left.read()) > 0)
"""
    assert prints(code).split() == ["7", "True"]


def test_ctrl_c_comes_through_and_closes_the_connection(server: Server) -> None:
    server.script(stall)
    code = f"""
import httpx, os, signal, threading, graphbit
from graphbit.transports import HttpxTransport
client = httpx.Client(transport=HttpxTransport(), timeout=None)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    client.get("{server.url}")
except KeyboardInterrupt:
    print("interrupted")
print(client.get("{server.url}").status_code)
"""
    assert prints(code).split() == ["interrupted", "200"]


def test_a_loop_that_is_gone_leaves_no_transfer(server: Server) -> None:
    server.otherwise(send(HALF), stall)

    async def main() -> Any:
        client = httpx2.AsyncClient(transport=AsyncHttpx2Transport())
        return [await client.send(client.build_request("GET", server.url), stream=True) for _ in range(3)]

    left = asyncio.run(main())
    del left
    gc.collect()
    server.wait_until_closed()


def test_the_families_do_not_mix_their_errors() -> None:
    with httpx.Client(transport=HttpxTransport()) as client, pytest.raises(httpx.ConnectError):
        client.get("http://127.0.0.1:1/")

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncHttpxTransport()) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("http://127.0.0.1:1/")

    asyncio.run(main())
