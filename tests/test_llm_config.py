"""Configurations, and the requests that the chat completions dialect makes of them. Nothing is sent."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from models import KEY

from graphbit import ConfigurationError, LlmConfig
from graphbit._ffi import lib
from graphbit._plan import IfPresent, Request, Slot
from graphbit.llm.dialects import openai
from graphbit.llm.providers import PROVIDERS

if TYPE_CHECKING:
    from graphbit._plan import Part

pytestmark = pytest.mark.usefixtures("no_environment")


# ---------------------------------------------------------------- LlmConfig


def test_the_constructor_names_the_factories() -> None:
    with pytest.raises(TypeError, match=r"LlmConfig\.openai\(…\), LlmConfig\.openai_compatible"):
        LlmConfig("openai", KEY)


def test_openai_has_the_vendors_address_and_a_default_model() -> None:
    config = LlmConfig.openai(KEY)
    assert (config.provider(), config.model(), config.base_url()) == (
        "openai",
        "gpt-4o-mini",
        "https://api.openai.com/v1",
    )
    assert LlmConfig.openai(KEY, "gpt-5").model() == "gpt-5"


def test_key_and_base_url_are_read_from_the_environment_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy.example/v1/")
    assert LlmConfig.openai() == LlmConfig.openai(KEY, base_url="http://proxy.example/v1")
    assert LlmConfig.openai(base_url="https://api.openai.com/v1").base_url() == "https://api.openai.com/v1"


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        LlmConfig.openai()


def test_keys_that_cannot_be_right_are_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="OpenAI API key cannot be empty"):
        LlmConfig.openai("")
    with pytest.raises(ValueError, match="OpenAI API key too short"):
        LlmConfig.openai("k" * 19)
    for broken in (KEY + "\n", KEY + " x", "sk-é" + KEY):
        with pytest.raises(ConfigurationError, match="contains a space") as caught:
            LlmConfig.openai(broken)
        assert KEY not in str(caught.value)
    with pytest.raises(TypeError, match="api_key must be a string"):
        LlmConfig.openai(12345)  # type: ignore[arg-type]


def test_another_servers_key_may_be_short() -> None:
    assert LlmConfig.openai("k", base_url="http://localhost:8000/v1").base_url() == "http://localhost:8000/v1"
    LlmConfig.openai_compatible("http://localhost:8000/v1", "m", "k")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host", "https://host"),
        ("HTTPS://Host.Example//", "HTTPS://Host.Example"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://[::1]/v1", "http://[::1]/v1"),
    ],
)
def test_a_base_url_loses_its_trailing_slash(given: str, kept: str) -> None:
    assert LlmConfig.openai_compatible(given, "m").base_url() == kept


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost:8000/v1", "must begin with http"),
        ("ftp://host/v1", "must begin with http"),
        ("", "must begin with http"),
        ("http://", "no host"),
        ("http://:80/v1", "no host"),
        ("http://host/a b", "spaces"),
        ("http://host/\x07", "control"),
        ("http://host:port/v1", "no usable port"),
        ("http://host:99999/v1", "no usable port"),
        ("http://host:/v1", "no usable port"),
        ("http://host/v1?key=1", "query"),
        ("http://me:secret@host/v1", "password"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        LlmConfig.openai_compatible(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"connect_timeout": -1},
        {"max_retries": -1},
        {"max_retries": 101},
        {"headers": {"X: Y": "z"}},
        {"headers": {"": "z"}},
        {"headers": {"X": "a\r\nY: b"}},
        {"organization": "a\nb"},
        {"model": " "},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        LlmConfig.openai(KEY, **options)


@pytest.mark.parametrize(
    "options",
    [{"timeout": "60"}, {"max_retries": 1.5}, {"max_retries": True}, {"verify": "ca.pem"}, {"headers": {"X": 1}}],
    ids=str,
)
def test_an_option_of_another_type_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        LlmConfig.openai(KEY, **options)


def test_configurations_are_values() -> None:
    one, same = LlmConfig.openai(KEY, headers={"X": "1"}), LlmConfig.openai(KEY, headers={"X": "1"})
    assert one == same and hash(one) == hash(same)
    assert one != LlmConfig.openai(KEY) and one != LlmConfig.openai(KEY + "x", headers={"X": "1"}) and one != "openai"
    assert copy.copy(one) is one and copy.deepcopy({"config": one})["config"] is one
    assert pickle.loads(pickle.dumps(one)) == one


def test_nothing_shows_the_key() -> None:
    config = LlmConfig.openai(KEY, headers={"X-Token": "hidden"})
    assert KEY not in repr(config) and "hidden" not in repr(config)
    assert repr(config) == "LlmConfig(provider='openai', model='gpt-4o-mini', base_url='https://api.openai.com/v1')"


def test_cleanup_and_with_are_there_for_programs_that_use_them() -> None:
    with LlmConfig.openai(KEY) as config:
        assert config.cleanup() is True
    assert config.model() == "gpt-4o-mini"


def test_making_a_configuration_loads_no_native_code_and_reads_no_environment() -> None:
    program = (
        "import sys, os; before = set(sys.modules)\n"
        "from graphbit import LlmConfig, LlmUsage\n"
        "LlmConfig.openai_compatible('http://localhost/v1', 'm')\n"
        "loaded = set(sys.modules) - before\n"
        "assert not loaded & {'asyncio', 'typing', 'json', 'dataclasses', 'graphbit._ffi', 'urllib.parse'}, loaded\n"
    )
    subprocess.run([sys.executable, "-S", "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_every_row_has_a_factory_and_a_dialect() -> None:
    for name, row in PROVIDERS.items():
        assert row.name == name and callable(getattr(LlmConfig, name))
        assert row.dialect == "openai"


# ---------------------------------------------------------------- the dialect: requests


def text_of(parts: Any, values: dict[int, str | None]) -> str:
    """What the core would make of a template, for values of kind text: a dumb renderer to compare with."""
    out = ""
    for part in parts:
        if isinstance(part, str):
            out += part
        elif isinstance(part, Slot):
            value = values[part.source]
            if value is None:
                out += "null" if part.escape == lib.GB_ESCAPE_JSON else ""
            elif part.escape == lib.GB_ESCAPE_JSON_STRING:
                out += json.dumps(value)[1:-1]
            else:
                out += value
        elif values[part.source] is not None:
            out += text_of(part.parts, values)
    return out


def header(request: Request, name: str) -> str | None:
    found = ["".join(str(part) for part in value) for key, value in request.headers if key.lower() == name.lower()]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_chat_request_is_the_json_that_the_format_asks_for() -> None:
    config = LlmConfig.openai_compatible("http://host/v1", 'm"odel', "key")
    prompt: list[Part] = ['say "', Slot(0), '"\n', IfPresent(1, ["and ", Slot(1)])]
    request = config.chat_request([("system", ["Be brief.\té"]), ("user", prompt)], max_tokens=7, temperature=0.5)
    assert (request.method, list(request.url)) == ("POST", ["http://host/v1/chat/completions"])
    for second in ("y\\", None):
        assert json.loads(text_of(request.body, {0: 'x"\n', 1: second})) == {
            "model": 'm"odel',
            "messages": [
                {"role": "system", "content": "Be brief.\té"},
                {"role": "user", "content": 'say "x"\n"\n' + (f"and {second}" if second else "")},
            ],
            "max_tokens": 7,
            "temperature": 0.5,
        }
    assert request.rules_required and request.rules is openai.RULES
    assert header(request, "authorization") == "Bearer key"
    assert header(request, "content-type") == "application/json"


def test_options_from_slots_are_left_out_where_absent() -> None:
    config = LlmConfig.openai(KEY)
    request = config.chat_request(Slot(0), max_tokens=Slot(1), temperature=Slot(2))
    messages = '[{"role":"user","content":"x"}]'
    assert json.loads(text_of(request.body, {0: messages, 1: None, 2: None})).keys() == {"model", "messages"}
    full = json.loads(text_of(request.body, {0: messages, 1: "5", 2: "0"}))
    assert full["max_completion_tokens"] == 5 and full["temperature"] == 0


def test_the_limit_on_tokens_is_called_as_the_provider_wants_it() -> None:
    compatible = LlmConfig.openai_compatible("http://host/v1", "m")
    for config, name in ((LlmConfig.openai(KEY), "max_completion_tokens"), (compatible, "max_tokens")):
        assert json.loads(text_of(config.chat_request([("user", ["x"])], max_tokens=3).body, {}))[name] == 3


def test_half_a_surrogate_pair_in_a_literal_goes_as_an_escape() -> None:
    body = LlmConfig.openai(KEY).chat_request([("user", ["\ud83d!"])]).body
    text_of(body, {}).encode()
    assert json.loads(text_of(body, {}))["messages"][0]["content"] == "\ud83d!"


def test_patience_and_headers_reach_the_request() -> None:
    config = LlmConfig.openai(
        KEY,
        timeout=1.5,
        connect_timeout=0.25,
        max_retries=0,
        headers={"authorization": "Basic x", "X-Title": "t"},
        organization="org-1",
        verify=False,
    )
    request = config.chat_request([("user", ["x"])])
    assert (request.total_timeout_ms, request.connect_timeout_ms, request.retry.attempts_max) == (1500, 250, 1)
    assert request.insecure
    assert header(request, "Authorization") == "Basic x"
    assert header(request, "X-Title") == "t"
    assert header(request, "OpenAI-Organization") == "org-1"
    patient = LlmConfig.openai(KEY, timeout=None).chat_request([("user", ["x"])])
    assert (patient.total_timeout_ms, patient.retry.attempts_max, patient.insecure) == (0, 4, False)
    assert (
        header(LlmConfig.openai_compatible("http://host", "m").chat_request([("user", ["x"])]), "Authorization") is None
    )
