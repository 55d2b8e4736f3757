"""The chat completions format: OpenAI's own, and what most servers speak.

Quirks a provider's row may name:
    token_limit         the field for max_tokens; "max_tokens" where not named
    idempotency_header  the header whose value tells the server that a request is another attempt at the same; none by default
    stream_usage        "no": the server does not know stream_options
"""

from __future__ import annotations

from graphbit._plan import JSON, JSON_STRING, STREAM_DELTAS as _DELTAS, IfPresent, Request, Rule, Slot, milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphbit._plan import Part
    from graphbit.llm.config import LlmConfig, Messages


def _said(message: str) -> tuple[Rule, ...]:
    """What a message says, be it a whole one or a piece of one (`choices.0.delta`)."""
    content = f"{message}.content"
    return (
        # Content is a string, or a list of parts: then there is a part 0.
        Rule(content, "text", when=(f"{content}.0", "null"), fold="append"),
        Rule(f"{content}.*.text", "text", when=(f"{content}.*.type", '"text"'), fold="append"),
        # A refusal stands in the place of an answer.
        Rule(f"{content}.*.refusal", "text", fold="append"),
        Rule(f"{message}.refusal", "text", fold="append"),
        # DeepSeek and others say `reasoning_content`, OpenRouter and newer servers `reasoning`, some both.
        Rule(f"{message}.reasoning_content", "reasoning", fold="append"),
        Rule(f"{message}.reasoning", "reasoning", when=(f"{message}.reasoning_content", "null"), fold="append"),
        Rule(f"{content}.*.thinking.*.text", "reasoning", fold="append"),
    )


RULES: tuple[Rule, ...] = (
    *_said("choices.0.message"),
    Rule("choices.0.message.tool_calls.*.id", "tool_id"),
    Rule("choices.0.message.tool_calls.*.function.name", "tool_name"),
    Rule("choices.0.message.tool_calls.*.function.arguments", "tool_arguments"),
    # Pieces of a stream belong to the call with their index.
    *_said("choices.0.delta"),
    Rule("choices.0.delta.tool_calls.*.id", "tool_id", index="choices.0.delta.tool_calls.*.index"),
    Rule("choices.0.delta.tool_calls.*.function.name", "tool_name", index="choices.0.delta.tool_calls.*.index"),
    Rule(
        "choices.0.delta.tool_calls.*.function.arguments",
        "tool_arguments",
        index="choices.0.delta.tool_calls.*.index",
        fold="append",
    ),
    Rule("choices.0.finish_reason", "finish"),
    Rule("model", "model"),
    Rule("id", "id"),
    # A stream may tell running counts: the last ones are right.
    Rule("usage.prompt_tokens", "prompt_tokens", fold="last"),
    Rule("usage.completion_tokens", "completion_tokens", fold="last"),
    Rule("usage.total_tokens", "total_tokens", fold="last"),
    Rule("usage.prompt_cache_hit_tokens", "cache_read_tokens", fold="last"),  # DeepSeek
    Rule("usage.prompt_tokens_details.cached_tokens", "cache_read_tokens", fold="last"),
    Rule("usage.completion_tokens_details.reasoning_tokens", "reasoning_tokens", fold="last"),
    # Errors: {"error": {"message": …}}, a choice's own, an array around it, and bare words.
    Rule("error.message", "error_message"),
    Rule("choices.0.error.message", "error_message"),
    Rule("0.error.message", "error_message"),
    Rule("error", "error_message"),
    Rule("message", "error_message", when=("choices", "null")),
    Rule("detail", "error_message", when=("choices", "null")),
    Rule("error.type", "error_type"),
    Rule("error.status", "error_type"),
    Rule("type", "error_type", when=("choices", "null")),
    Rule("error.code", "error_code"),
    Rule("choices.0.error.code", "error_code"),
    Rule("0.error.code", "error_code"),
    Rule("code", "error_code", when=("choices", "null")),
)


def chat_request(
    config: LlmConfig,
    messages: Messages,
    *,
    max_tokens: int | Slot | None = None,
    temperature: float | Slot | None = None,
    stream: bool = False,
) -> Request:
    """POST {base_url}/chat/completions; see LlmConfig.chat_request."""
    body: list[Part] = ['{"model":', _quoted(config.model()), ',"messages":']
    if isinstance(messages, Slot):
        body.append(Slot(messages.source, messages.path, JSON))
    else:
        for i, (role, parts) in enumerate(messages):
            body += ["," if i else "[", '{"role":', _quoted(role), ',"content":"', *_escaped(parts), '"}']
        body.append("]")
    body += _option(config.row().quirks.get("token_limit", "max_tokens"), max_tokens)
    body += _option("temperature", temperature)
    if stream:
        body.append(',"stream":true')
        if config.row().quirks.get("stream_usage") != "no":
            body.append(',"stream_options":{"include_usage":true}')
    body.append("}")
    return _request(config, "POST", "/chat/completions", body, stream)


def models_request(config: LlmConfig) -> Request:
    """GET {base_url}/models."""
    return _request(config, "GET", "/models", None)


def _request(config: LlmConfig, method: str, path: str, body: list[Part] | None, stream: bool = False) -> Request:
    headers = {"Accept": "text/event-stream" if stream else "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if config._api_key is not None:
        headers["Authorization"] = f"Bearer {config._api_key}"
    if config._organization is not None:
        headers["OpenAI-Organization"] = config._organization
    own = {name.lower() for name, _ in config._headers}
    rows = [(name, value) for name, value in headers.items() if name.lower() not in own]
    return Request(
        method,
        [config.base_url() + path],
        headers=[(name, [value]) for name, value in (*rows, *config._headers)],
        body=body,
        rules=RULES if body is not None else (),
        rules_required=body is not None,
        insecure=not config._verify,
        connect_timeout_ms=milliseconds(config._connect_timeout),
        # How long an answer takes that is read as it comes is the model's affair; how long it may be silent is not.
        idle_timeout_ms=milliseconds(config._timeout) if stream and config._http.idle_timeout is None else 0,
        total_timeout_ms=0 if stream else milliseconds(config._timeout),
        attempts_max=config._max_retries + 1,
        http=config._http,
        idempotency_header=config.row().quirks.get("idempotency_header", "") if body is not None else "",
        stream=_DELTAS if stream else 0,
        admission=config.admission() if body is not None else None,
    )


def _option(name: str, value: float | Slot | None) -> list[Part]:
    if value is None:
        return []
    if isinstance(value, Slot):
        return [IfPresent(value.source, [f',"{name}":', Slot(value.source, value.path, JSON)])]
    from json import dumps

    return [f',"{name}":{dumps(value)}']


def _escaped(parts: Sequence[Part]) -> list[Part]:
    """Parts of a text for the inside of a JSON string."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str):
            found.append(_quoted(part)[1:-1])
        elif isinstance(part, Slot):
            found.append(Slot(part.source, part.path, JSON_STRING))
        else:
            found.append(IfPresent(part.source, _escaped(part.parts)))
    return found


def _quoted(text: str) -> str:
    from json import dumps

    quoted = dumps(text, ensure_ascii=False)
    try:
        quoted.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can carry it
        return dumps(text)
    return quoted
