"""HTTP nodes against a server on loopback: what is sent, what becomes of the reply, and what is never sent."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectError,
    Executor,
    HttpOptions,
    Node,
    NotFoundError,
    RateLimitError,
    RefusedError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    TemplateError,
    UnknownNameError,
    Workflow,
    WorkflowResult,
)
from graphbit.testing import FakeProvider, Request, virtual_time


def executed(*nodes: Node, **inputs: Any) -> WorkflowResult:
    made = Workflow("w")
    made.add(*nodes)
    return Executor().execute(made, inputs)


def fetched(method: str, url: str, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
    """The output of one HTTP node; its error is raised."""
    return executed(Node.http("page", method, url, **options), **(inputs or {}))["page"]


def error_of(method: str, url: str, inputs: dict[str, Any] | None = None, **options: Any) -> RequestError:
    """The error of one HTTP node, which names it."""
    result = executed(Node.http("page", method, url, **options), **(inputs or {}))
    assert result.states == {"page": "failed"}
    error = result.errors["page"]
    assert isinstance(error, RequestError)
    assert str(error).startswith("node 'page' ")
    assert error.node == "page"
    assert getattr(error, "__notes__", None) == ["raised by node 'page'"]
    return error


def told(request: Request) -> dict[str, Any]:
    return {"method": request.method, "target": request.target, "body": request.body.decode()}


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: it is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "Post"])
@pytest.mark.parametrize("body", [None, "a body"])
def test_a_method_is_sent_as_it_is_meant_with_a_body_and_without(
    provider: FakeProvider, method: str, body: str | None
) -> None:
    provider.route(method.upper(), "/echo", handler=told)
    reply = json.loads(fetched(method, provider.url + "/echo", body=body))
    assert reply == {"method": method.upper(), "target": "/echo", "body": body or ""}


def test_head_brings_an_empty_text(provider: FakeProvider) -> None:
    provider.route("GET", "/d", text="long")
    assert fetched("HEAD", provider.url + "/d") == ""
    assert provider.requests[0].method == "HEAD"


@pytest.mark.parametrize(
    "value",
    ["a b", "a/b?c=d&e#f", "100%", "größe 🐝", "+", "..", "a\r\nb", "{x}", "-._~", "\x00", "'\"<>\\^`|", "", "%2F"],
)
def test_what_is_inserted_into_a_url_is_one_component_of_it(provider: FakeProvider, value: str) -> None:
    target = f"/x/{quote(value, safe='')}/y"
    provider.route("GET", target, text="found")
    provider.route("GET", "/q", handler=lambda request: request.query)
    if value != "..":  # the only one that is a way and not a name, see below
        assert fetched("GET", provider.url + "/x/{v}/y", {"v": value}) == "found"
    assert fetched("GET", provider.url + "/q?k={v}&l=1", {"v": value}) == f"k={quote(value, safe='')}&l=1"


def test_numbers_and_values_go_into_a_url_as_json(provider: FakeProvider) -> None:
    provider.route("GET", "/q", handler=lambda request: request.query)
    assert fetched("GET", provider.url + "/q?{n}&{l}&{b}", {"n": 5, "l": [1, "a"], "b": True}) == (
        "5&%5B1%2C%22a%22%5D&true"
    )


def test_a_base_url_may_be_a_placeholder_and_what_follows_is_encoded(provider: FakeProvider) -> None:
    provider.route("GET", "/d/a%20b", text="found")
    made = Workflow("w", inputs=["base", "id"])
    made.add(Node.http("page", "GET", "{base}/d/{id}"))
    assert Executor().execute(made, {"base": provider.url, "id": "a b"})["page"] == "found"


def test_a_whole_url_may_be_a_nodes_output(provider: FakeProvider) -> None:
    provider.route("GET", "/d", handler=lambda request: request.query)
    result = executed(
        Node.function(lambda: f"{provider.url}/d?k=a%20b", name="address"), Node.http("page", "GET", "{address}")
    )
    assert result["page"] == "k=a%20b"


def test_headers_are_texts_with_placeholders(provider: FakeProvider) -> None:
    provider.route("GET", "/d")
    headers = {
        "Authorization": "Bearer {token}",
        "X-Part": "{made.k.0}",
        "X-Plain": 'as {"it": "is"}',
        "X-Both": "{a}-{a}",
    }
    result = executed(
        Node.function(lambda: {"k": [5]}, name="made"),
        Node.http("page", "GET", provider.url + "/d", headers=headers),
        token="t-1",
        a="ä",
    )
    assert result.errors == {}
    sent = provider.requests[0].headers
    assert sent["authorization"] == "Bearer t-1"
    assert sent["x-part"] == "5"
    assert sent["x-plain"] == 'as {"it": "is"}'
    assert sent["x-both"].encode("latin-1").decode() == "ä-ä"


def test_a_json_body_is_sent_as_json_unless_its_header_says_otherwise(provider: FakeProvider) -> None:
    provider.route("POST", "/d")
    fetched("POST", provider.url + "/d", body=' {"a": 1}')
    fetched("POST", provider.url + "/d", body="[1]", headers={"content-TYPE": "application/x-mine"})
    fetched("POST", provider.url + "/d", body="words")
    kinds = [request.headers.get("content-type") for request in provider.requests]
    assert kinds[:2] == ["application/json", "application/x-mine"]
    assert kinds[2] != "application/json"


AWKWARD = [
    'say "hi"',
    "back\\slash",
    "line\nbreak\ttab",
    "größe 🐝",
    "\x00\x1f\x7f",
    "{not} {{a}} reference",
    "",
    "</script>",
]


@pytest.mark.parametrize("value", AWKWARD)
def test_between_the_quotes_of_a_json_body_a_value_is_escaped(provider: FakeProvider, value: str) -> None:
    provider.route("POST", "/d")
    body = '{"whole": "{v}", "inside": "<{v}|{v}>", "quoted \\" {v}": 1, "open": {v}, "list": [{v}]}'
    fetched("POST", provider.url + "/d", {"v": value}, body=body)
    assert provider.requests[0].json == {
        "whole": value,
        "inside": f"<{value}|{value}>",
        f'quoted " {value}': 1,
        "open": value,
        "list": [value],
    }


@pytest.mark.parametrize("value", [5, 1.5, True, None, [1, "a"], {"k": {"l": 'q"'}}, 2**70, []])
def test_outside_of_quotes_a_value_is_json_of_its_own_kind(provider: FakeProvider, value: Any) -> None:
    provider.route("POST", "/d")
    result = executed(
        Node.function(lambda: value, name="v"),
        Node.http("page", "POST", provider.url + "/d", body='{"v": {v}, "text": "{v}"}'),
    )
    assert result.errors == {}
    sent = provider.requests[0].json
    assert sent["v"] == value
    assert json.loads(sent["text"]) == value


def test_a_text_that_native_nodes_made_is_escaped_too(provider: FakeProvider) -> None:
    provider.route("POST", "/d", text='a "reply"')
    result = executed(
        Node.transform("t", 'say "{x}"'),
        Node.http("first", "POST", provider.url + "/d", body='{"t": "{t}", "u": {t}}'),
        Node.http("second", "POST", provider.url + "/d", body='["{first}", {first}]'),
        x="a\nb",
    )
    assert result.errors == {}
    assert provider.requests[0].json == {"t": 'say "a\nb"', "u": 'say "a\nb"'}
    assert provider.requests[1].json == ['a "reply"', 'a "reply"']


@pytest.mark.parametrize("value", AWKWARD)
def test_into_a_plain_body_a_value_goes_as_it_is(provider: FakeProvider, value: str) -> None:
    provider.route("POST", "/d")
    fetched("POST", provider.url + "/d", {"v": value}, body='v="{v}"')
    assert provider.requests[0].body.decode() == f'v="{value}"'


@pytest.mark.parametrize("body", ["{v}", "{v} said it", " {v}", "{v.k}|{v.k}", "{{node.v}}"])
def test_a_body_that_begins_with_a_placeholder_is_no_json_for_that(provider: FakeProvider, body: str) -> None:
    provider.route("POST", "/d")
    result = executed(
        Node.function(lambda: '{"k": "say \\"hi\\""}', name="v"),
        Node.http("page", "POST", provider.url + "/d", body=body),
    )
    assert result.errors == {}
    plain = '{"k": "say \\"hi\\""}'
    expected = body.replace("{{node.v}}", plain).replace("{v.k}", 'say "hi"').replace("{v}", plain)
    assert provider.requests[0].body.decode() == expected
    assert provider.requests[0].headers.get("content-type") != "application/json"


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ('{"v": "{v}"}', '{"v": "\\"\\n"}'),
        (' \n{ "v": {v} }', ' \n{ "v": "\\"\\n" }'),
        ("[{v}]", '["\\"\\n"]'),
        ("{{v}: 1}", '{"\\"\\n": 1}'),
        ("{}", "{}"),
        ('{"a": 1}', '{"a": 1}'),
        ('{{"a": 1}}', '{"a": 1}'),
    ],
)
def test_a_body_that_begins_as_json_is_json(provider: FakeProvider, body: str, sent: str) -> None:
    provider.route("POST", "/d")
    fetched("POST", provider.url + "/d", {"v": '"\n'} if "v}" in body else {}, body=body)
    assert provider.requests[0].body.decode() == sent
    assert provider.requests[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize("length", [200_000, 3_000_000])
def test_large_bodies_go_and_come_whole(provider: FakeProvider, length: int) -> None:
    provider.route("POST", "/d", handler=lambda request: request.body)
    text = ("0123456789ä" * (length // 11 + 1))[:length]
    assert fetched("POST", provider.url + "/d", {"v": text}, body="<{v}>") == f"<{text}>"


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


# ---------------------------------------------------------------- what is never sent


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nEvil: 1", "a\rb", "a\0b", "\r\n\r\nGET /evil HTTP/1.1"])
@pytest.mark.parametrize("where", ["an input", "a function", "a transform", "the header itself"])
def test_a_header_with_a_line_break_is_refused(provider: FakeProvider, value: str, where: str) -> None:
    provider.route("GET", "/d")
    nodes = {"a function": [Node.function(lambda: value, name="v")], "a transform": [Node.transform("v", "{x}")]}
    inputs = {"an input": {"v": value}, "a transform": {"x": value}}
    header = value if where == "the header itself" else "Bearer {v}"
    page = Node.http("page", "GET", provider.url + "/d", headers={"X-A": header}, max_retries=3)
    result = executed(*nodes.get(where, []), page, **inputs.get(where, {}))
    with pytest.raises(RefusedError, match="node 'page' was not sent: a header contains a line break or NUL") as caught:
        result["page"]
    assert caught.value.node == "page"
    assert provider.requests == []
    assert provider.connections_opened == 0


@pytest.mark.parametrize("name", ["X A", "", "X:", "X: 1\r\nEvil", "X\r\nEvil", "größe"])
def test_a_header_without_a_name_of_its_kind_is_refused(provider: FakeProvider, name: str) -> None:
    provider.route("GET", "/d")
    with pytest.raises((ConfigurationError, RefusedError), match="'page'"):
        fetched("GET", provider.url + "/d", headers={name: "1"})
    assert provider.requests == []


@pytest.mark.parametrize(
    "base", ["ftp://127.0.0.1", "file:///etc/passwd?", "gopher://127.0.0.1", "127.0.0.1", "", "javascript:1"]
)
def test_a_url_that_turns_out_not_to_be_http_is_refused(base: str) -> None:
    error = error_of("GET", "{base}/d", {"base": base}, max_retries=3)
    assert isinstance(error, RefusedError)
    assert "http://" in str(error)


@pytest.mark.parametrize("rest", ["/a b", "/a\r\nEvil: 1", "/a\0"])
def test_an_inserted_base_url_cannot_smuggle(provider: FakeProvider, rest: str) -> None:
    assert isinstance(error_of("GET", "{base}/d", {"base": provider.url + rest}), RefusedError)
    assert provider.requests == []


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "nothing", " http://x", "", "  ", "//x/y", 5, None])
def test_a_url_that_cannot_be_right_is_refused_where_it_is_given(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="'page'"):
        Node.http("page", "GET", url)


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "GÉT", 5, None])
def test_a_method_that_is_no_word_is_refused_where_it_is_given(method: Any) -> None:
    with pytest.raises(ConfigurationError, match="'page'"):
        Node.http("page", method, "http://x")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": "5"},
        {"timeout": True},
        {"connect_timeout": 0},
        {"max_retries": -1},
        {"max_retries": 101},
        {"max_retries": "1"},
        {"max_retries": True},
        {"max_retries": 1.5},
        {"headers": {"X-A": 5}},
        {"headers": ["X-A"]},
        {"body": {"a": 1}},
        {"json_path": 5},
        {"json_path": "a.*"},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_right_is_refused_where_it_is_given(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="'page'"):
        Node.http("page", "GET", "http://x", **options)


@pytest.mark.parametrize("option", ["url", "header", "body"])
def test_a_typo_in_any_text_is_an_error_before_anything_is_sent(provider: FakeProvider, option: str) -> None:
    made = Workflow("w", inputs=["topic"])
    url = provider.url + ("/{topik}" if option == "url" else "/d")
    headers = {"X-A": "{topik}"} if option == "header" else None
    made.add(Node.http("page", "GET", url, headers=headers, body="{topik}" if option == "body" else None))
    with pytest.raises(UnknownNameError, match="'page'.*did you mean 'topic'"):
        Executor().execute(made, {"topic": 1})
    assert provider.requests == []


# ---------------------------------------------------------------- many at once


def test_http_nodes_are_on_their_way_at_once(provider: FakeProvider) -> None:
    number = 20
    provider.route("GET", "/d", handler=lambda request: request.query)
    provider.hold()
    made = Workflow("w")
    made.add(*[Node.http(f"n{i}", "GET", f"{provider.url}/d?{i}") for i in range(number)])
    run = Executor().start(made)
    provider.wait_for_requests(number)
    assert provider.in_flight == number
    provider.release()
    assert run.wait().outputs == {f"n{i}": str(i) for i in range(number)}
