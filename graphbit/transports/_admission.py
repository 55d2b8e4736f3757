"""Which requests of other clients a provider's limits hold back: calls of models, known by their body. Everything else passes."""

from __future__ import annotations

import re

from graphbit._ffi import ffi
from graphbit.admission import key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from graphbit.admission import Admission

_BYTES = ffi.typeof("uint8_t[]")
# A quote in the text of a prompt is written as \", so what is found is a field.
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*"([^"\\]{1,200})"')
_SEARCHED = 1 << 20
_ENDPOINTS = ("/chat/completions", "/completions", "/responses", "/messages", "/embeddings")
_CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


def admit(spec: Any, admission: Admission, request: Any, body: bytes, group: int, keep: list[Any]) -> None:
    """Puts into `spec`, a gb_exchange_spec, what the request is held back by, if it is the call of a model. `keep` must live
    until the exchange was started."""
    if request.method != "POST" or not body.startswith(b"{"):
        return
    found = _MODEL.search(body, 0, _SEARCHED)
    if found is None:
        return
    url = request.url
    path = url.path
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            path = path[: -len(endpoint)]
            break
    # As LlmConfig has it: with the same base URL, model and key both are held back by one controller.
    base_url = f"{url.scheme}://{url.netloc.decode('ascii')}{path}".rstrip("/")
    credential = next((value for name in _CREDENTIALS if (value := request.headers.get(name))), "")
    key = key_of(base_url, found[1].decode("utf-8", "replace"), credential.removeprefix("Bearer ")).encode()
    keep.append(ffi.from_buffer(_BYTES, key))
    spec.admission_key = keep[-1], len(key)
    (
        spec.admission_flags,
        spec.concurrency,
        spec.requests_per_minute,
        spec.queue_timeout_ms,
        spec.tokens_per_minute,
    ) = admission.numbers()
    spec.group = group
