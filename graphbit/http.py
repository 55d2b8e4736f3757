"""How HTTP is spoken: caps, timeouts, proxies, trust, redirects. For model calls and for `Node.http`."""

from __future__ import annotations

from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECONDS_MAX = 1_000_000
_PROXY_SCHEMES = ("http://", "https://", "socks4://", "socks4a://", "socks5://", "socks5h://")
_DEPTH_MAX = 1024


class HttpOptions:
    """What is asked of connections and replies, beyond the timeouts and `verify` that clients and nodes have themselves.

    ```python
    LlmConfig.openai(http=HttpOptions(proxy="http://proxy.example:3128", ca_file="/etc/ssl/ours.pem"))
    Node.http("page", "GET", "{url}", http=HttpOptions(public_only=True, max_body_bytes=1 << 20))
    ```

    A value: it does not change, equal ones are equal, threads share it. Its repr shows no password.

    Args:
        first_byte_timeout: seconds from the connection to the first byte of the reply; None: no bound of its own.
        idle_timeout: seconds between one byte and the next; None: no bound of its own. It does not count while we are the
            slow ones: a stream that nobody reads stands still and waits.
        max_header_bytes: of a reply's head, all its lines together.
        max_body_bytes: of a reply's body, decoded.
        max_wire_bytes: of a reply's body as it comes, before it is decoded.
        max_event_bytes: of one event (server-sent events) or line (NDJSON) of a stream.
        max_json_depth: how deep a JSON reply may be nested, at most 1024.
        max_redirects: so many redirects `Node.http` follows, of GET and HEAD requests without a body; of others, and of model
            calls, the redirect is the reply. Never from https to http. To another host no header goes along but Accept, Accept-Language and User-Agent.
        proxy: a URL, `http://user:password@host:port`, or with https, socks4, socks4a, socks5 or socks5h; "": none. None: what
            HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY said when the runtime started.
        no_proxy: host names, suffixes (`.example.com`) and addresses with commas between them that no proxy is asked for.
        ca_file: PEM file of authorities, trusted in place of the system's.
        client_cert, client_key, client_key_password: PEM files, and the key's password; the key may stand in the certificate's
            file.
        public_only: connect to addresses of the public internet only, checked on the address that is connected to, after
            every lookup and redirect: for URLs that come from users or models. No proxy is asked, and connections are not
            shared.

    Raises:
        ConfigurationError: one of these cannot be right, or a file is not there.
    """

    __slots__ = (
        "ca_file",
        "client_cert",
        "client_key",
        "client_key_password",
        "first_byte_timeout",
        "idle_timeout",
        "max_body_bytes",
        "max_event_bytes",
        "max_header_bytes",
        "max_json_depth",
        "max_redirects",
        "max_wire_bytes",
        "no_proxy",
        "proxy",
        "public_only",
    )

    first_byte_timeout: float | None
    idle_timeout: float | None
    max_header_bytes: int
    max_body_bytes: int
    max_wire_bytes: int
    max_event_bytes: int
    max_json_depth: int
    max_redirects: int
    proxy: str | None
    no_proxy: str | None
    ca_file: str | None
    client_cert: str | None
    client_key: str | None
    client_key_password: str | None
    public_only: bool

    def __init__(
        self,
        *,
        first_byte_timeout: float | None = None,
        idle_timeout: float | None = None,
        max_header_bytes: int = 256 << 10,
        max_body_bytes: int = 64 << 20,
        max_wire_bytes: int = 64 << 20,
        max_event_bytes: int = 16 << 20,
        max_json_depth: int = 128,
        max_redirects: int = 5,
        proxy: str | None = None,
        no_proxy: str | None = None,
        ca_file: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        client_key_password: str | None = None,
        public_only: bool = False,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "first_byte_timeout", _seconds("first_byte_timeout", first_byte_timeout))
        set_(self, "idle_timeout", _seconds("idle_timeout", idle_timeout))
        for name, value, least, most in (
            ("max_header_bytes", max_header_bytes, 1, 1 << 31),
            ("max_body_bytes", max_body_bytes, 1, 1 << 62),
            ("max_wire_bytes", max_wire_bytes, 1, 1 << 62),
            ("max_event_bytes", max_event_bytes, 1, 1 << 31),
            ("max_json_depth", max_json_depth, 1, _DEPTH_MAX),
            ("max_redirects", max_redirects, 0, 100),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigurationError(f"{name} is a number from {least} to {most}, got {value!r}")
            set_(self, name, value)
        set_(self, "proxy", _proxy(proxy))
        for name, text in (("no_proxy", no_proxy), ("client_key_password", client_key_password)):
            if text is not None and (not isinstance(text, str) or "\0" in text):
                raise ConfigurationError(f"{name} must be a string, got {type(text).__name__}")
            set_(self, name, text)
        for name, path in (("ca_file", ca_file), ("client_cert", client_cert), ("client_key", client_key)):
            set_(self, name, _file(name, path))
        if client_key is not None and client_cert is None:
            raise ConfigurationError("client_key is the key of a certificate: give client_cert as well")
        if not isinstance(public_only, bool):
            raise ConfigurationError(f"public_only must be True or False, got {public_only!r}")
        if public_only and proxy:
            raise ConfigurationError(
                "public_only cannot be kept through a proxy, which connects where we cannot see; give one of the two"
            )
        set_(self, "public_only", public_only)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"HttpOptions do not change; make new ones to set {name!r}")

    def _fields(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in HttpOptions.__slots__])

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, HttpOptions) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> Any:
        return _made, ({name: getattr(self, name) for name in HttpOptions.__slots__},)

    def __repr__(self) -> str:
        shown = []
        for name in HttpOptions.__slots__:
            value = getattr(self, name)
            if value == getattr(DEFAULT, name):
                continue
            if name == "client_key_password":
                value = "***"
            elif name == "proxy" and "@" in value:
                scheme, _, rest = value.partition("://")
                value = f"{scheme}://***@{rest.rpartition('@')[2]}"
            shown.append(f"{name}={value!r}")
        return f"HttpOptions({', '.join(shown)})"

    def route(self) -> tuple[str, str, str, str, str, str, int] | None:
        """Proxy, no_proxy, CA file, certificate, key, its password, gb_route_flags; None: nothing of it is set."""
        if self.proxy is None is self.no_proxy is self.ca_file is self.client_cert and not self.public_only:
            return None
        return (
            self.proxy or "",
            self.no_proxy or "",
            self.ca_file or "",
            self.client_cert or "",
            self.client_key or "",
            self.client_key_password or "",
            (self.proxy is not None) | self.public_only << 1,
        )


def _made(fields: dict[str, Any]) -> HttpOptions:
    return HttpOptions(**fields)


def _seconds(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _SECONDS_MAX:
        raise ConfigurationError(f"{name} is a number of seconds above 0, or None, got {value!r}")
    return float(value)


def _proxy(value: str | None) -> str | None:
    if value is None or value == "":
        return value
    if not isinstance(value, str):
        raise ConfigurationError(f"proxy must be a URL, got {type(value).__name__}")
    if not value.lower().startswith(_PROXY_SCHEMES) or not value.isprintable() or " " in value:
        raise ConfigurationError(
            f"a proxy is a URL such as 'http://proxy.example:3128', with one of {', '.join(_PROXY_SCHEMES)}"
        )
    return value


def _file(name: str, path: str | None) -> str | None:
    if path is None:
        return None
    import os

    found = os.fspath(path)
    if not isinstance(found, str) or not os.path.isfile(found):
        raise ConfigurationError(f"{name}: there is no file {found!r}")
    return os.path.abspath(found)


DEFAULT = HttpOptions()


def checked_http(value: object, of: str) -> HttpOptions:
    """`value`, or the default where it is None.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return DEFAULT
    if not isinstance(value, HttpOptions):
        raise TypeError(f"http must be HttpOptions, got {type(value).__name__} ({of})")
    return value
