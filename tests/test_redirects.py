"""Redirects: which are followed, how far, and what goes along."""

from __future__ import annotations

from typing import Any

import pytest
from flows import linked

from graphbit import (
    Executor,
    HttpOptions,
    LlmClient,
    LlmConfig,
    Node,
    RefusedError,
    ReplyError,
    RequestTimeoutError,
    WorkflowResult,
)
from graphbit.testing import FakeProvider

FOLLOWED = [301, 302, 303, 307, 308]


def fetched(method: str, url: str, **options: Any) -> WorkflowResult:
    return Executor().execute(linked([Node.http("page", method, url, **options)]))


@pytest.mark.parametrize("status", FOLLOWED)
@pytest.mark.parametrize("location", ["/new", "new", "?x=1", "//{authority}/new", "http://{authority}/new#part"])
def test_a_get_goes_where_it_is_sent(provider: FakeProvider, status: int, location: str) -> None:
    where = location.format(authority=provider.url.removeprefix("http://"))
    provider.route("GET", "/old", text="moved", status=status, headers={"location": where}, times=1)
    provider.route("GET", "/old", text="here")
    provider.route("GET", "/new", text="here")
    result = fetched("GET", provider.url + "/old", headers={"Authorization": "Bearer t"})
    assert result["page"] == "here"
    assert (result.get_node_response_metadata("page") or {})["http_status"] == 200
    assert [it.headers["authorization"] for it in provider.requests] == ["Bearer t", "Bearer t"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_what_could_be_done_twice_is_not_sent_elsewhere(provider: FakeProvider, method: str) -> None:
    provider.route(method, "/old", text="moved", status=307, headers={"location": "/new"})
    result = fetched(method, provider.url + "/old", body="secret" if method != "DELETE" else None)
    assert result["page"] == "moved"
    assert (result.get_node_response_metadata("page") or {})["http_status"] == 307
    assert len(provider.requests) == 1


def test_a_get_with_a_body_stays_where_it_is(provider: FakeProvider) -> None:
    provider.route("GET", "/old", text="moved", status=302, headers={"location": "/new"})
    assert fetched("GET", provider.url + "/old", body="secret")["page"] == "moved"


@pytest.mark.parametrize("status", FOLLOWED)
def test_without_redirects_the_reply_is_the_redirect(provider: FakeProvider, status: int) -> None:
    provider.route("GET", "/old", text="moved", status=status, headers={"location": "/new"})
    result = fetched("GET", provider.url + "/old", http=HttpOptions(max_redirects=0))
    assert result["page"] == "moved"
    assert (result.get_node_response_metadata("page") or {})["http_status"] == status


def test_a_redirect_to_nowhere_is_a_reply_like_any_other(provider: FakeProvider) -> None:
    provider.route("GET", "/old", text="multiple", status=302)
    assert fetched("GET", provider.url + "/old")["page"] == "multiple"


def test_a_circle_ends(provider: FakeProvider) -> None:
    provider.route("GET", "/a", status=302, headers={"location": "/b"})
    provider.route("GET", "/b", status=302, headers={"location": "/a"})
    result = fetched("GET", provider.url + "/a", http=HttpOptions(max_redirects=7))
    with pytest.raises(ReplyError, match="redirected too often.*max_redirects"):
        result["page"]
    assert len(provider.requests) == 8


def test_another_host_is_told_nothing_that_could_be_a_secret(provider: FakeProvider) -> None:
    with FakeProvider() as other:
        provider.route("GET", "/old", status=302, headers={"location": other.url + "/there"})
        other.route("GET", "/there", status=302, headers={"location": provider.url + "/back"})
        provider.route("GET", "/back", text="home")
        headers = {
            "Authorization": "Bearer t",
            "Cookie": "a=b",
            "X-Api-Key": "k",
            "Accept": "text/plain",
            "Accept-Language": "de",
        }
        assert fetched("GET", provider.url + "/old", headers=headers)["page"] == "home"
        for request in (other.requests[0], provider.requests[1]):  # nor does what was left behind come back
            assert not {"authorization", "cookie", "x-api-key"} & set(request.headers)
            assert (request.headers["accept"], request.headers["accept-language"]) == ("text/plain", "de")


def test_a_user_and_password_in_the_target_are_not_sent(provider: FakeProvider) -> None:
    where = provider.url.replace("http://", "http://user:pass@") + "/new"
    provider.route("GET", "/old", status=302, headers={"location": where})
    provider.route("GET", "/new", text="here")
    assert fetched("GET", provider.url + "/old")["page"] == "here"
    assert "authorization" not in provider.requests[1].headers


@pytest.mark.parametrize("where", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1:1/x", "http://[::"])
def test_other_schemes_and_nonsense_are_not_followed(provider: FakeProvider, where: str) -> None:
    provider.route("GET", "/old", status=302, headers={"location": where})
    with pytest.raises((ReplyError, RefusedError)):
        fetched("GET", provider.url + "/old")["page"]
    assert len(provider.requests) == 1


def test_all_hops_together_have_the_time_of_one_attempt(provider: FakeProvider) -> None:
    provider.route("GET", "/a", status=302, headers={"location": "/a"}, latency=0.1)
    result = fetched("GET", provider.url + "/a", timeout=0.35, http=HttpOptions(max_redirects=100))
    with pytest.raises(RequestTimeoutError):
        result["page"]
    assert len(provider.requests) <= 5


def test_a_failed_hop_is_tried_again_from_the_start(provider: FakeProvider) -> None:
    provider.route("GET", "/old", status=302, headers={"location": "/new"})
    provider.route("GET", "/new", text="busy", status=503, times=1)
    provider.route("GET", "/new", text="here")
    assert fetched("GET", provider.url + "/old", max_retries=1)["page"] == "here"
    assert [it.path for it in provider.requests] == ["/old", "/new", "/old", "/new"]


def test_a_model_is_never_asked_elsewhere(provider: FakeProvider) -> None:
    provider.reply_body("moved", status=307, headers={"location": "/v2"})
    client = LlmClient(LlmConfig.openai_compatible(provider.base_url, "m", max_retries=0))
    with pytest.raises(ReplyError, match="was redirected"):
        client.complete("hi")
    provider.reply_body("moved", status=307, headers={"location": "/v2"})
    with pytest.raises(ReplyError):
        list(client.stream("hi"))
    assert len(provider.requests) == 2
