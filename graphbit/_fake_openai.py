"""What an OpenAI-style API says: checks of a request, completions, stream events, embeddings, error objects. All pure.

Nothing here is drawn by lot, so the same request gets the same reply on every machine:

- **Default text**: an extractive summary (`summarize`), the best one to three sentences of the prompt.
- **Structured output**: for `response_format` the smallest value that meets the schema, its strings filled with the summary.
- **Usage**: one token a word, `len(text.split())`, of all messages and of the reply. Real tokenizers count differently.
- **Embeddings**: words hashed into a unit vector, so that texts that share words are near each other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ._fake_http import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SUMMARY_CHARS_MAX = 400
SUMMARY_SOURCE_CHARS_MAX = 20_000
SCHEMA_DEPTH_MAX = 8
ARGUMENT_PIECE_CHARS = 12  # tool arguments are streamed in pieces of this size, so that clients must join them
EMBEDDING_DIMENSIONS = 256
EMBEDDING_DIMENSIONS_MAX = 4096

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all also am an and any are as at be because been before but by can could did do does each for from
        had has have he her here him his how i if in into is it its just like may me more most my no nor not now of on one
        only or other our out over please she should so some such than that the their them then there these they this
        those to too up us very was we were what when where which while who why will with would you your""",
    )
)

# Status -> type, code and message of the error object, as far as the caller leaves them open.
_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "permission_denied", "You are not allowed to use this."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", "overloaded", "The engine is currently overloaded, please try again later."),
}


class Refusal(Exception):
    """A request the API turns down, with the status and error object it would use."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = error(status, message, code=code, param=param, kind="invalid_request_error")


def error(
    status: int,
    message: str | None = None,
    *,
    code: str | None = None,
    param: str | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """An error object. What is left open comes from the status; a message of one's own gets no code it did not ask for."""
    fallback = _ERRORS[500] if status > 500 else _ERRORS[400]
    known_kind, known_code, known_message = _ERRORS.get(status, fallback)
    if code is None and (message is None or status in (401, 429)):
        code = known_code
    return {"error": {"message": message or known_message, "type": kind or known_kind, "param": param, "code": code}}


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8, as the real thing sends it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can carry
        return json.dumps(value, separators=(",", ":")).encode()


# ---- what a request must have


def check_chat(body: object) -> dict[str, Any]:
    """The body of a chat request if it is sound; raises the `Refusal` OpenAI would send if not."""
    body = _check_object(body)
    messages = body.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise Refusal(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            code="empty_array",
            param="messages",
        )
    _check_messages(messages)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong_type("stream", "a boolean", stream)
    if body.get("stream_options") is not None and not stream:
        raise Refusal(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    temperature = body.get("temperature")
    if temperature is not None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise _wrong_type("temperature", "a decimal", temperature)
        if not 0 <= temperature <= 2:
            bound, end = ("minimum", "below") if temperature < 0 else ("maximum", "above")
            raise Refusal(
                f"Invalid 'temperature': decimal {end} {bound} value. Expected a value between 0 and 2.",
                code=f"decimal_{end}_{bound[:3]}_value",
                param="temperature",
            )
    for name in ("max_tokens", "max_completion_tokens"):
        limit = body.get(name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise _wrong_type(name, "an integer", limit)
        if limit is not None and limit < 1:
            raise Refusal(
                f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {limit} instead.",
                code="integer_below_min_value",
                param=name,
            )
    for at, tool in enumerate(body.get("tools") or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _missing(f"tools[{at}].function.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"]):
            raise Refusal(
                f"Invalid 'tools[{at}].function.name': string does not match pattern '^[a-zA-Z0-9_-]+$'.",
                code="invalid_value",
                param=f"tools[{at}].function.name",
            )
    return body


def check_embeddings(body: object) -> dict[str, Any]:
    """The body of an embeddings request if it is sound; raises `Refusal` if not."""
    body = _check_object(body)
    given = body.get("input")
    if given is None:
        raise _missing("input")
    if not isinstance(given, (str, list)):
        raise _wrong_type("input", "a string or an array", given)
    if not given or (isinstance(given, list) and any(one == "" for one in given)):
        raise Refusal("'input' cannot be empty, nor hold an empty string.", param="input")
    dimensions = body.get("dimensions")
    if dimensions is not None and (not isinstance(dimensions, int) or not 1 <= dimensions <= EMBEDDING_DIMENSIONS_MAX):
        raise Refusal(f"'dimensions' must be from 1 to {EMBEDDING_DIMENSIONS_MAX}.", param="dimensions")
    return body


def _check_object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Refusal("We could not parse the JSON body of your request: it must be one JSON object.")
    model = body.get("model")
    if model is None:
        raise Refusal("you must provide a model parameter")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    return body


def _check_messages(messages: list[object]) -> None:
    owed: set[object] = set()  # tool calls that still need their result
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, dict):
            raise _wrong_type(where, "an object", message)
        role = message.get("role")
        if role is None:
            raise _missing(f"{where}.role")
        if role not in ROLES:
            raise Refusal(
                f"Invalid value: '{role}'. Supported values are: {', '.join(repr(one) for one in ROLES)}.",
                code="invalid_value",
                param=f"{where}.role",
            )
        if owed and role != "tool":
            raise _unanswered(owed)
        calls = message.get("tool_calls") if role == "assistant" else None
        if role == "tool":
            if message.get("tool_call_id") is None:
                raise _missing(f"{where}.tool_call_id")
            if message["tool_call_id"] not in owed:
                raise Refusal(
                    "messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
                    param=f"{where}.role",
                )
            owed.discard(message["tool_call_id"])
        for call_at, call in enumerate(calls or []):
            if not isinstance(call, dict) or not isinstance(call.get("id"), str):
                raise _missing(f"{where}.tool_calls[{call_at}].id")
            function = call.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
                raise _missing(f"{where}.tool_calls[{call_at}].function.arguments")
            owed.add(call["id"])
        if "content" not in message and not calls:
            raise _missing(f"{where}.content")
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and calls):
            raise _wrong_type(f"{where}.content", "one of a string or array of objects", content)
    if owed:
        raise _unanswered(owed)


def _unanswered(owed: set[object]) -> Refusal:
    return Refusal(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(sorted(map(str, owed)))}",
        param="messages",
    )


def _missing(name: str) -> Refusal:
    return Refusal(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def _wrong_type(name: str, expected: str, value: object) -> Refusal:
    names = {"NoneType": "null", "str": "a string", "list": "an array", "dict": "an object", "bool": "a boolean"}
    got = names.get(type(value).__name__, "a number")
    message = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
    return Refusal(message, code="invalid_type", param=name)


# ---- what it says when nobody tells it what to say


def summarize(text: str) -> str:
    """The one to three sentences that hold most of the frequent words, in their original order."""
    lines = text[:SUMMARY_SOURCE_CHARS_MAX].splitlines()
    sentences = [
        one.strip() for line in lines for one in re.split(r"(?<=[.!?…])\s+|(?<=[。！？])", line) if one.strip()
    ]
    if not sentences:
        return "There is nothing to summarize."
    words = [[w for w in re.findall(r"\w+", one.lower()) if w not in _STOP_WORDS] for one in sentences]
    often = Counter(word for some in words for word in some)
    # The 4 keeps a sentence of one frequent word from beating one that says something.
    score = [sum(often[word] for word in set(some)) / (len(some) + 4) for some in words]
    count = 1 if len(sentences) < 3 else 2 if len(sentences) < 7 else 3
    best = sorted(range(len(sentences)), key=lambda at: (-score[at], at))[:count]
    summary = " ".join(sentences[at] for at in sorted(best))
    if len(summary) <= SUMMARY_CHARS_MAX:
        return summary
    end = summary.rfind(" ", 0, SUMMARY_CHARS_MAX)
    return summary[: end if end > 0 else SUMMARY_CHARS_MAX - 1].rstrip(" ,;:") + "…"


def default_text(body: Mapping[str, Any], prompt: str) -> str:
    """The summary of the prompt, or of the tool results if those came last; as JSON if the request asks for JSON."""
    results = []
    for message in reversed(body.get("messages") or []):
        if message.get("role") != "tool":
            break
        results.append(text_of(message.get("content")))
    summary = summarize("\n".join(reversed(results)) if results else prompt)
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return dump({"summary": summary}).decode()
    if kind == "json_schema" and isinstance(wanted, dict):
        schema = (wanted.get("json_schema") or {}).get("schema") or {}
        return dump(_sample(schema, schema, summary, 0)).decode()
    return summary


def _sample(schema: Any, root: Mapping[str, Any], text: str, depth: int) -> Any:
    """A small value that meets the schema, as far as its types, enums, references and lower bounds go."""
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH_MAX:
        return None
    if "$ref" in schema:
        found: Any = root
        for step in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if isinstance(found, dict) and step else found
        return _sample(found, root, text, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _sample(schema[name][0], root, text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _sample(one, root, text, depth + 1) for name, one in properties.items()}
    if kind == "array":
        return [_sample(schema.get("items") or {}, root, text, depth + 1)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    if kind == "boolean":
        return True
    return None if kind == "null" else text[: schema.get("maxLength", SUMMARY_CHARS_MAX)]


# ---- bodies


def usage(body: Mapping[str, Any], said: str) -> dict[str, Any]:
    """Token counts, estimated as one a word."""
    prompt = sum(len(text_of(message.get("content")).split()) for message in body.get("messages") or [])
    completion = len(said.split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(
    number: int,
    created: int,
    model: str,
    text: str | None,
    calls: Sequence[dict[str, Any]],
    reasoning: str | None,
    finish: str,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """A whole `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": dict(counts),
    }


def events(
    number: int,
    created: int,
    model: str,
    pieces: Sequence[str],
    calls: Sequence[dict[str, Any]],
    reasoning: str | None,
    finish: str,
    counts: Mapping[str, Any] | None,
) -> list[bytes]:
    """The same as server-sent events, one element each; usage comes in a chunk of its own if `counts` is given."""

    def chunk(choices: list[dict[str, Any]], usage: object = None) -> bytes:
        value: dict[str, Any] = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": choices,
        }
        if counts is not None:
            value["usage"] = usage
        return b"data: " + dump(value) + b"\n\n"

    def delta(value: dict[str, Any], finish: str | None = None) -> bytes:
        return chunk([{"index": 0, "delta": value, "logprobs": None, "finish_reason": finish}])

    made = [delta({"role": "assistant", "content": None if calls and not pieces else ""})]
    if reasoning is not None:
        made += [delta({"reasoning_content": piece}) for piece in words_of(reasoning)]
    made += [delta({"content": piece}) for piece in pieces]
    for index, call in enumerate(calls):
        function = call["function"]
        begun = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        made.append(delta({"tool_calls": [begun]}))
        for at in range(0, len(function["arguments"]), ARGUMENT_PIECE_CHARS):
            piece = function["arguments"][at : at + ARGUMENT_PIECE_CHARS]
            made.append(delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    made.append(delta({}, finish))
    if counts is not None:
        made.append(chunk([], dict(counts)))
    made.append(b"data: [DONE]\n\n")
    return made


def words_of(text: str) -> list[str]:
    """The text in pieces of one word and the space behind it; joined they are the text."""
    return re.findall(r"\s*\S+\s?|\s+$", text)


def parts_of(text: str, count: int) -> list[str]:
    """The text in so many pieces of about the same length; fewer if it has fewer characters."""
    count = max(1, min(count, len(text)))
    return [text[len(text) * at // count : len(text) * (at + 1) // count] for at in range(count)] if text else []


def embedding(text: str, dimensions: int = EMBEDDING_DIMENSIONS) -> list[float]:
    """A unit vector of the words: each is hashed to a place and a sign."""
    from zlib import crc32

    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        code = crc32(word.encode("utf-8", "surrogatepass"))
        vector[code % dimensions] += 1.0 if code & 0x8000_0000 else -1.0
    length = sum(value * value for value in vector) ** 0.5
    if not length:  # no word at all, or words that cancel out
        vector[crc32(text.encode("utf-8", "surrogatepass")) % dimensions] = length = 1.0
    return [round(value / length, 6) for value in vector]


def embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    """A whole reply of /v1/embeddings; texts or tokens, as numbers or in base64."""
    given = body["input"]
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    texts = [one if isinstance(one, str) else " ".join(map(str, one)) for one in inputs]
    dimensions = body.get("dimensions") or EMBEDDING_DIMENSIONS
    vectors: list[Any] = [embedding(text, dimensions) for text in texts]
    if body.get("encoding_format") == "base64":
        from base64 import b64encode
        from struct import pack

        vectors = [b64encode(pack(f"<{dimensions}f", *vector)).decode() for vector in vectors]
    count = sum(len(text.split()) for text in texts)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)],
        "model": body["model"],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def models(names: Sequence[str]) -> dict[str, Any]:
    """A whole reply of /v1/models."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> dict[str, Any]:
    """One model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "graphbit"}
