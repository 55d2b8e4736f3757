"""LlmConfig: which model to ask, where, with which key, and how patiently."""

from __future__ import annotations

from graphbit.admission import checked_admission, key_of
from graphbit.errors import ConfigurationError
from graphbit.http import checked_http
from graphbit.llm.providers import PROVIDERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Any

    from graphbit._plan import Part, Request, Slot
    from graphbit.admission import Admission
    from graphbit.http import HttpOptions
    from graphbit.llm.providers import Provider

    Messages = Sequence[tuple[str, Sequence[Part]]] | Slot

_SECONDS_MAX = 1_000_000
_RETRIES_MAX = 100
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class LlmConfig:
    """Which model to ask. Made by one of the factories:

    ```python
    LlmConfig.openai()                                              # the key is read from OPENAI_API_KEY
    LlmConfig.openai("sk-…", "gpt-4o-mini")
    LlmConfig.openai_compatible("http://localhost:8000/v1", "qwen3-8b")
    ```

    A value: it does not change, equal ones are equal, threads share it. Nothing is sent and nothing checked with the provider
    when it is made. Its repr does not show the key; pickled it contains the key.

    All factories take these options:

    Args:
        timeout: seconds for one attempt as a whole; of an answer that is streamed, how long it may be silent. None: no limit.
        connect_timeout: seconds to reach the server.
        max_retries: more attempts after failures that may pass (no connection, 408, 409, 429, 5xx), with growing pauses, never
            shorter than the server's Retry-After. 0: none.
        headers: sent with every request, in place of ours where the names are the same.
        organization: the account's organization, where the provider knows such.
        verify: False lets any TLS certificate pass.
        http: caps, proxies, trust and more: HttpOptions.
        admission: the provider's limits, as far as they are not to be learned: Admission. False: nothing holds requests back.

    Raises:
        ConfigurationError: something of that cannot be right.
    """

    __slots__ = (
        "_admission",
        "_api_key",
        "_base_url",
        "_connect_timeout",
        "_headers",
        "_http",
        "_max_retries",
        "_model",
        "_organization",
        "_provider",
        "_timeout",
        "_verify",
    )

    _provider: str
    _model: str
    _base_url: str
    _api_key: str | None
    _timeout: float | None
    _connect_timeout: float
    _max_retries: int
    _headers: tuple[tuple[str, str], ...]
    _organization: str | None
    _verify: bool
    _http: HttpOptions
    _admission: Admission | None

    def __init__(self, *_: object, **__: object) -> None:
        factories = ", ".join(f"LlmConfig.{name}(…)" for name in PROVIDERS)
        raise TypeError(f"LlmConfig has no constructor; use one of its factories: {factories}")

    # ---------------------------------------------------------------------------------------------------- factories

    @staticmethod
    def openai(
        api_key: str | None = None,
        model: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float | None = 60.0,
        connect_timeout: float = 10.0,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        organization: str | None = None,
        verify: bool = True,
        http: HttpOptions | None = None,
        admission: Admission | bool | None = None,
    ) -> LlmConfig:
        """`LlmConfig.openai()`: OpenAI, or a server that is to be spoken to just like it.

        Without `api_key` the environment variable OPENAI_API_KEY is read, without `base_url` OPENAI_BASE_URL; both now, when
        this is called.

        Raises:
            ConfigurationError: there is no key, or one that is too short; else as for all factories.
        """
        row = PROVIDERS["openai"]
        return LlmConfig._make(
            row,
            _model(model, row),
            base_url,
            _key(api_key, row, required=True),
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_retries=max_retries,
            headers=headers,
            organization=organization,
            verify=verify,
            http=http,
            admission=admission,
        )

    @staticmethod
    def openai_compatible(
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout: float | None = 60.0,
        connect_timeout: float = 10.0,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        organization: str | None = None,
        verify: bool = True,
        http: HttpOptions | None = None,
        admission: Admission | bool | None = None,
    ) -> LlmConfig:
        """`LlmConfig.openai_compatible("http://localhost:8000/v1", "qwen3-8b")`: vLLM, llama.cpp, LM Studio, Ollama, a proxy.

        `base_url` is what stands before `/chat/completions`. Without `api_key` none is sent. A limit on tokens is sent as
        `max_tokens`, which all such servers know; for one that wants `max_completion_tokens` use
        `LlmConfig.openai(key, model, base_url)`.
        """
        row = PROVIDERS["openai_compatible"]
        return LlmConfig._make(
            row,
            _model(model, row),
            base_url,
            _key(api_key, row, required=False),
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_retries=max_retries,
            headers=headers,
            organization=organization,
            verify=verify,
            http=http,
            admission=admission,
        )

    @staticmethod
    def _make(
        row: Provider,
        model: str,
        base_url: str | None,
        api_key: str | None,
        *,
        timeout: float | None,
        connect_timeout: float,
        max_retries: int,
        headers: Mapping[str, str] | None,
        organization: str | None,
        verify: bool,
        http: HttpOptions | None,
        admission: Admission | bool | None,
    ) -> LlmConfig:
        made = LlmConfig.__new__(LlmConfig)
        made._provider = row.name
        made._model = model
        made._base_url = _base_url(base_url, row)
        if api_key is not None and made._base_url == row.base_url and len(api_key) < row.key_length_min:
            raise ConfigurationError(
                f"{row.title} API key too short: at least {row.key_length_min} characters are expected"
            )
        made._api_key = api_key
        made._timeout = None if timeout is None else _seconds("timeout", timeout)
        made._connect_timeout = _seconds("connect_timeout", connect_timeout)
        made._max_retries = _retries(max_retries)
        made._headers = _headers(headers)
        made._organization = None if organization is None else _header_text("organization", organization)
        if not isinstance(verify, bool):
            raise TypeError(
                f"verify must be True or False, got {verify!r}; a CA file goes into http=HttpOptions(ca_file=…)"
            )
        made._verify = verify
        made._http = checked_http(http, "LlmConfig")
        made._admission = checked_admission(admission)
        return made

    # ---------------------------------------------------------------------------------------------------- what it says

    def provider(self) -> str:
        """`config.provider() == "openai"`: the provider's name."""
        return self._provider

    def model(self) -> str:
        """`config.model() == "gpt-4o-mini"`: the model's name."""
        return self._model

    def base_url(self) -> str:
        """`config.base_url() == "https://api.openai.com/v1"`: where requests go, without a slash at the end."""
        return self._base_url

    def cleanup(self) -> bool:
        """`config.cleanup()`: True. A configuration holds nothing that must be given back; programs may call this all the same."""
        return True

    def __enter__(self) -> LlmConfig:
        return self

    def __exit__(
        self,
        _exc_type: type[BaseException] | None = None,
        _exc_val: BaseException | None = None,
        _exc_tb: TracebackType | None = None,
    ) -> None:
        self.cleanup()

    def _fields(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in LlmConfig.__slots__])

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, LlmConfig) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __copy__(self) -> LlmConfig:
        return self

    def __deepcopy__(self, memo: object) -> LlmConfig:
        return self

    def __repr__(self) -> str:
        return f"LlmConfig(provider={self._provider!r}, model={self._model!r}, base_url={self._base_url!r})"

    # ---------------------------------------------------------------------------------------------------- for the inside

    def row(self) -> Provider:
        """The provider's row."""
        return PROVIDERS[self._provider]

    def secret(self) -> str:
        """The key, or "": for taking it out of what is shown."""
        return self._api_key or ""

    def admission(self) -> tuple[str, Admission] | None:
        """Which controller its requests pass, and what that is to respect; None: they pass none."""
        if self._admission is None:
            return None
        return key_of(self._base_url, self._model, self.secret()), self._admission

    def chat_request(
        self,
        messages: Messages,
        *,
        max_tokens: int | Slot | None = None,
        temperature: float | Slot | None = None,
        stream: bool = False,
    ) -> Request:
        """`config.chat_request([("user", ["Write about ", Slot(0)])])`: the request that asks this model.

        A message is (role, parts): texts as they are, slots that are inserted as text. Or all messages are one Slot, whose
        value is the JSON array of them. A Slot for an option leaves it out where its value is absent.
        """
        from graphbit.llm.dialects import dialect

        made: Request = dialect(self.row().dialect).chat_request(
            self, messages, max_tokens=max_tokens, temperature=temperature, stream=stream
        )
        return made

    def models_request(self) -> Request:
        """The request that asks which models there are: costs nothing."""
        from graphbit.llm.dialects import dialect

        made: Request = dialect(self.row().dialect).models_request(self)
        return made


# -------------------------------------------------------------------------------------------------------------- checks


def _model(model: str | None, row: Provider) -> str:
    if model is None and row.model:
        return row.model
    if not isinstance(model, str):
        raise TypeError(f"model must be a string, got {model!r}")
    if not model.strip():
        raise ConfigurationError(f"{row.title} model cannot be empty")
    return model


def _key(api_key: str | None, row: Provider, *, required: bool) -> str | None:
    title, variable = row.title, row.key_variable
    if api_key is None:
        from os import environ

        api_key = (environ.get(variable) if variable else None) or None
        if api_key is None:
            if required:
                raise ConfigurationError(f"no {title} API key: pass api_key or set the environment variable {variable}")
            return None
    if not isinstance(api_key, str):
        raise TypeError(f"api_key must be a string, got {type(api_key).__name__}")
    if not api_key:
        raise ConfigurationError(f"{title} API key cannot be empty")
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigurationError(
            f"{title} API key contains a space, a line break or another character that no key has"
            + (f" (it was read from {variable})" if variable and api_key == _environment(variable) else "")
        )
    return api_key


def _environment(variable: str) -> str | None:
    from os import environ

    return environ.get(variable)


def _base_url(base_url: str | None, row: Provider) -> str:
    source = ""
    if base_url is None:
        if row.url_variable:
            base_url = _environment(row.url_variable) or None
            source = f" (from {row.url_variable})"
        if base_url is None:
            base_url = row.base_url
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a string, got {base_url!r}")
    found = base_url.strip()
    scheme, separator, rest = found.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise ConfigurationError(f"base_url must begin with http:// or https://, got {base_url!r}{source}")
    if not found.isprintable() or " " in found:
        raise ConfigurationError(f"base_url must not contain spaces or control characters, got {base_url!r}{source}")
    authority = rest.partition("/")[0]
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"base_url must not have a query or fragment{source}; send what is needed as headers")
    if "@" in authority:
        raise ConfigurationError(
            f"base_url must not contain a password{source}; send it as a header: headers={{'Authorization': …}}"
        )
    host, _, port = (
        authority.rpartition(":") if not authority.endswith("]") and ":" in authority else (authority, "", "")
    )
    if not host:
        raise ConfigurationError(f"base_url has no host, got {base_url!r}{source}")
    if (port or authority.endswith(":")) and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(f"base_url has no usable port, got {base_url!r}{source}")
    return found.rstrip("/")


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    if not 0 < value <= _SECONDS_MAX:  # not a number is not above 0 either
        raise ConfigurationError(f"{name} must be above 0 and at most {_SECONDS_MAX} seconds, got {value!r}")
    return float(value)


def _retries(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_retries must be an int, got {value!r}")
    if not 0 <= value <= _RETRIES_MAX:
        raise ConfigurationError(f"max_retries must be between 0 and {_RETRIES_MAX}, got {value!r}")
    return value


def _headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in (headers or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"a header's name must be a string, got {name!r}")
        if not name or not _TOKEN.issuperset(name):
            raise ConfigurationError(f"{name!r} cannot be the name of a header")
        found.append((name, _header_text(f"header {name!r}", value)))
    return tuple(found)


def _header_text(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, got {type(value).__name__}")
    if "\r" in value or "\n" in value or "\0" in value:
        raise ConfigurationError(f"{what} must not contain a line break or NUL")
    return value
