"""What HTTP nodes make of replies: texts, bytes, values at a JSON path, and failures: their names, which are tried again."""

from __future__ import annotations

import gc
import hashlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pages import error_of, executed, fetched

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectError,
    HttpOptions,
    Node,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    TemplateError,
)
from graphbit.testing import FakeProvider, virtual_time


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: it is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# ---------------------------------------------------------------- what becomes of the reply


@pytest.mark.parametrize("text", ["plain", "", "größe 🐝", '{"a": 1}', "x" * 200_000])
def test_the_output_is_the_body_as_text(provider: FakeProvider, text: str) -> None:
    provider.route("GET", "/d", text=text)
    assert fetched("GET", provider.url + "/d") == text


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
def test_any_good_status_is_a_success(provider: FakeProvider, status: int) -> None:
    provider.route("GET", "/d", text="" if status == 204 else "fine", status=status)
    result = executed(Node.http("page", "GET", provider.url + "/d"))
    assert result["page"] == ("" if status == 204 else "fine")
    found = result.get_node_response_metadata("page")
    assert found is not None
    assert (found["http_status"], found["node_type"], found["success"]) == (status, "http", True)


DOCUMENT = {
    "a": [{"b": "x", "n": None}, 5],
    "big": 2**70,
    "f": 1.5,
    "yes": True,
    "no": False,
    "empty": [],
    "o": {"größe": "ü"},
    "dash-ed": 1,
    "text": 'a "quoted"\ntext 🐝',
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.0.b", "x"),
        ("$.a[0].b", "x"),
        ("a[0].b", "x"),
        ("$.a.1", 5),
        ("a", [{"b": "x", "n": None}, 5]),
        ("a.0.n", None),
        ("big", 2**70),
        ("f", 1.5),
        ("yes", True),
        ("no", False),
        ("empty", []),
        ("o.größe", "ü"),
        ("o", {"größe": "ü"}),
        ("dash-ed", 1),
        ("text", 'a "quoted"\ntext 🐝'),
    ],
)
def test_a_json_path_makes_its_value_the_output(provider: FakeProvider, path: str, expected: Any) -> None:
    provider.route("GET", "/d", json=DOCUMENT)
    found = fetched("GET", provider.url + "/d", json_path=path)
    assert found == expected
    assert type(found) is type(expected)


def test_a_json_path_into_a_list_begins_with_a_place(provider: FakeProvider) -> None:
    provider.route("GET", "/d", json=[{"b": 1}])
    assert fetched("GET", provider.url + "/d", json_path="0.b") == 1
    assert fetched("GET", provider.url + "/d", json_path="$[0].b") == 1


def test_a_json_path_finds_a_value_in_a_large_reply(provider: FakeProvider) -> None:
    items = [{"id": i, "text": "x" * 100} for i in range(2000)]
    provider.route("GET", "/d", json={"items": items, "last": "here"})
    assert fetched("GET", provider.url + "/d", json_path="last") == "here"
    assert fetched("GET", provider.url + "/d", json_path="items") == items


@pytest.mark.parametrize("path", ["q", "a.7", "a.0.b.c", "a.b", "big.0"])
def test_a_json_path_that_leads_nowhere_fails_and_shows_the_reply(provider: FakeProvider, path: str) -> None:
    provider.route("GET", "/d", json=DOCUMENT)
    error = error_of("GET", provider.url + "/d", json_path=path)
    assert isinstance(error, ReplyError)
    assert '{"a":[{"b":"x"' in str(error)
    assert (error.status, error.attempts) == (200, 1)


@pytest.mark.parametrize("text", ["plain words", "", "{oops", '{"a": 1} more'])
def test_a_json_path_into_what_is_no_json_fails(provider: FakeProvider, text: str) -> None:
    provider.route("GET", "/d", text=text)
    error = error_of("GET", provider.url + "/d", json_path="a", max_retries=3)
    assert isinstance(error, ReplyError)
    assert error.attempts == 1


@pytest.mark.parametrize("path", ["", "$", "a.*.b", "a..b", " a", "*"])
def test_a_json_path_that_is_no_path_to_one_value_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="'page': json_path is a path to one value"):
        fetched("GET", "http://127.0.0.1/", json_path=path)


def test_functions_are_given_the_value_itself_and_texts_its_json(provider: FakeProvider) -> None:
    provider.route("GET", "/d", json={"items": [{"n": 1}, {"n": 2}]})
    result = executed(
        Node.http("page", "GET", provider.url + "/d", json_path="items"),
        Node.http("raw", "GET", provider.url + "/d"),
        Node.function(lambda page: sum(it["n"] for it in page), "total"),
        Node.function(lambda first: first, "first", bind={"first": "page.0.n"}),
        Node.function(lambda raw: type(raw), "kind"),
        Node.transform("t", "{page} {page.1.n} {raw.items.0.n}"),
        Node.condition("route", lambda page: "chosen" if len(page) == 2 else []),
        Node.transform("chosen", "{route.0}"),
    )
    assert result.errors == {}
    assert (result["total"], result["first"], result["kind"]) == (3, 1, str)
    assert result["t"] == '[{"n":1},{"n":2}] 2 1'
    assert result["chosen"] == '{"n":1}'
    assert result["route"] == [{"n": 1}, {"n": 2}]


def test_a_path_into_a_reply_that_leads_nowhere_is_the_readers_failure(provider: FakeProvider) -> None:
    provider.route("GET", "/d", json={"a": 1})
    result = executed(Node.http("page", "GET", provider.url + "/d"), Node.transform("t", "{page.b}"))
    assert result.states == {"page": "succeeded", "t": "failed"}
    with pytest.raises(TemplateError, match="node 't': node 'page' has no 'b'"):
        result["t"]


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_bytes_come_as_they_are_and_outlive_their_result(provider: FakeProvider, size: int) -> None:
    body = os.urandom(size)
    provider.route("GET", "/image", body=body)
    result = executed(
        Node.http("image", "GET", provider.url + "/image", output="bytes"),
        Node.function(lambda image: len(image), name="size", bind={"image": "image"}),
    )
    view = result["image"]
    assert isinstance(view, memoryview)
    assert view.readonly
    assert result["size"] == size
    result = None
    gc.collect()
    assert view == body
    assert hashlib.sha256(view).digest() == hashlib.sha256(body).digest()


def test_bytes_are_not_what_a_path_finds() -> None:
    with pytest.raises(ConfigurationError, match="json_path"):
        Node.http("image", "GET", "http://x/", output="bytes", json_path="a")
    with pytest.raises(ConfigurationError, match="'text' or 'bytes'"):
        Node.http("image", "GET", "http://x/", output="json")  # type: ignore[arg-type]


def test_a_redirect_in_the_place_of_json_says_that_it_is_one(provider: FakeProvider) -> None:
    provider.route("GET", "/old", text="moved", status=302, headers={"location": "/new"})
    error = error_of("GET", provider.url + "/old", json_path="a", http=HttpOptions(max_redirects=0))
    assert isinstance(error, ReplyError)
    assert "was redirected (status 302)" in str(error)
    assert error.status == 302


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, NotFoundError),
        (409, BadRequestError),
        (418, BadRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
    ],
)
def test_a_status_from_400_on_fails_the_node_as_its_kind(
    provider: FakeProvider, status: int, kind: type[StatusError]
) -> None:
    provider.route("GET", "/d", text="words of the server", status=status, headers={"x-request-id": "r-5"})
    error = error_of("GET", provider.url + "/d")
    assert type(error) is kind
    assert str(status) in str(error) and "words of the server" in str(error)
    assert (error.status, error.body, error.attempts, error.request_id) == (status, "words of the server", 1, "r-5")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_an_http_node_is_told_to_do_does_not_speak_of_models(provider: FakeProvider, status: int) -> None:
    provider.route("GET", "/d", text="no", status=status)
    assert "model" not in str(error_of("GET", provider.url + "/d"))


def test_a_failed_node_skips_what_follows_and_the_reply_is_not_its_output(provider: FakeProvider) -> None:
    provider.route("GET", "/d", text="no", status=500)
    result = executed(Node.http("page", "GET", provider.url + "/d"), Node.transform("t", "{page}"))
    assert result.states == {"page": "failed", "t": "skipped"}
    assert result.outputs == {}
    found = result.get_node_response_metadata("page")
    assert found is not None
    assert (found["http_status"], found["success"], found["attempts"]) == (500, False, 1)
    assert found["error"] == str(result.errors["page"])


def test_a_long_error_page_is_shown_in_part_and_kept_whole(provider: FakeProvider) -> None:
    page = "<html>\n" + "x" * 5000
    provider.route("GET", "/d", text=page, status=500)
    error = error_of("GET", provider.url + "/d")
    assert error.body == page
    assert len(str(error)) < 400 and "\n" not in str(error)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_failures_that_may_pass_are_tried_again(provider: FakeProvider, status: int) -> None:
    provider.route("GET", "/d", text="fine")
    provider.fail(status, path="/d", times=2)
    with virtual_time():
        result = executed(Node.http("page", "GET", provider.url + "/d", max_retries=2))
    assert result["page"] == "fine"
    assert result.nodes["page"].attempts == 3
    assert (result.get_node_response_metadata("page") or {})["attempts"] == 3


@pytest.mark.parametrize("after", ["nothing", "headers", "body"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_is_tried_again(provider: FakeProvider, after: Any, reset: bool) -> None:
    provider.route("GET", "/d", text="a text of some length")
    provider.cut(after, reset=reset, path="/d")
    with virtual_time():
        result = executed(Node.http("page", "GET", provider.url + "/d", max_retries=1))
    assert result["page"] == "a text of some length"
    assert result.nodes["page"].attempts == 2


@pytest.mark.parametrize("after", ["nothing", "headers", "body"])
def test_a_cut_connection_is_a_connect_error(provider: FakeProvider, after: Any) -> None:
    provider.route("GET", "/d", text="a text of some length")
    provider.cut(after, path="/d")
    error = error_of("GET", provider.url + "/d")
    assert isinstance(error, ConnectError)
    assert error.attempts == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_stays_wrong_is_not_tried_again(provider: FakeProvider, status: int) -> None:
    provider.fail(status, path="/d", times=9)
    provider.route("GET", "/d")
    assert error_of("GET", provider.url + "/d", max_retries=5).attempts == 1
    assert len(provider.requests) == 1


def test_without_max_retries_nothing_is_tried_again(provider: FakeProvider) -> None:
    provider.route("POST", "/d", status=503)
    assert error_of("POST", provider.url + "/d").attempts == 1
    assert len(provider.requests) == 1


def test_attempts_end_and_the_last_failure_is_told(provider: FakeProvider) -> None:
    provider.route("GET", "/d", text="first", status=500, times=1)
    provider.route("GET", "/d", text="last", status=503)
    with virtual_time():
        error = error_of("GET", provider.url + "/d", max_retries=3)
    assert isinstance(error, ServerError)
    assert (error.status, error.body, error.attempts) == (503, "last", 4)
    assert "4 attempts" in str(error)
    assert len(provider.requests) == 4


def test_a_retry_is_not_sooner_than_the_server_asks(provider: FakeProvider) -> None:
    provider.route("GET", "/d", text="fine")
    provider.fail(429, retry_after=30, path="/d")
    with virtual_time() as clock:
        assert fetched("GET", provider.url + "/d", max_retries=1) == "fine"
        assert clock.now() >= 30


def test_a_retry_sends_the_same_again(provider: FakeProvider) -> None:
    provider.route("POST", "/d")
    provider.fail(500, path="/d")
    with virtual_time():
        fetched(
            "POST", provider.url + "/d?q={v}", {"v": "ä b"}, body='{"v": "{v}"}', headers={"X-V": "1"}, max_retries=1
        )
    first, second = provider.requests
    assert (first.target, first.body, first.headers["x-v"]) == (second.target, second.body, second.headers["x-v"])


def test_a_server_that_never_answers_is_a_timeout(provider: FakeProvider) -> None:
    provider.route("GET", "/d", text="a text")
    for after in ("nothing", "headers", "body"):
        provider.stall(after, path="/d")
        error = error_of("GET", provider.url + "/d", timeout=0.1)
        assert isinstance(error, RequestTimeoutError)
        assert "raise timeout" in str(error)
    provider.wait_for_disconnects(3)


def test_a_port_that_refuses_is_a_connect_error(closed_port: int) -> None:
    error = error_of("GET", f"http://127.0.0.1:{closed_port}/d")
    assert isinstance(error, ConnectError)
    assert str(closed_port) in str(error)
    assert (error.status, error.body, error.attempts) == (None, "", 1)


def test_an_unknown_host_is_a_connect_error() -> None:
    error = error_of("GET", "http://nowhere.invalid/d")
    assert isinstance(error, ConnectError)
    assert "nowhere.invalid" in str(error)


def test_a_reply_that_is_no_http_is_a_reply_error(provider: FakeProvider) -> None:
    provider.route("GET", "/d")
    provider.reply_raw(b"220 mail.example.org ESMTP\r\n", path="/d")
    assert isinstance(error_of("GET", provider.url + "/d", max_retries=3), ReplyError)
