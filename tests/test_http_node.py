"""HTTP nodes against a server on loopback: what is sent, and what is never sent."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from pages import error_of, executed, fetched

from graphbit import ConfigurationError, Executor, Node, RefusedError, UnknownNameError, Workflow
from graphbit.testing import FakeProvider, Request


def told(request: Request) -> dict[str, Any]:
    return {"method": request.method, "target": request.target, "body": request.body.decode()}


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
