"""Builds a plan: what a workflow is made of, as the flat arrays that gb_plan_create takes in.

    builder = PlanBuilder(node_count=2, input_count=1)
    body = builder.template(['{"q":"', Slot(2, escape=JSON_STRING), '"}'])
    ...
    plan = builder.build()

Values are numbered as in the header: 0..node_count-1 are nodes' outputs, from node_count on run inputs.
"""

from __future__ import annotations

import struct
from array import array

from graphbit._ffi import CYCLE, NULL, check, ffi, lib
from graphbit.http import DEFAULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from graphbit.admission import Admission
    from graphbit.http import HttpOptions
    from graphbit.policy import RetryPolicy

PLAIN: int = lib.GB_ESCAPE_PLAIN
JSON_STRING: int = lib.GB_ESCAPE_JSON_STRING
JSON: int = lib.GB_ESCAPE_JSON
URL: int = lib.GB_ESCAPE_URL

STREAM_DELTAS: int = lib.GB_STREAM_DELTAS

_LITERAL: int = lib.GB_SEGMENT_LITERAL
_SLOT: int = lib.GB_SEGMENT_SLOT
_IF_PRESENT: int = lib.GB_SEGMENT_IF_PRESENT
_REQUEST = struct.Struct("=18I12HQQQ10I")
_ROUTE = struct.Struct("=16I")
_ADMISSION = struct.Struct("=6IQ")
_RETRY = struct.Struct("=6I12H")
_NATIVE = struct.Struct("=QII8IQ")
_VOID, _NUMBERS, _BYTES = lib.GB_NATIVE_VOID, lib.GB_NATIVE_NUMBERS, lib.GB_NATIVE_BYTES


def milliseconds(seconds: float | None) -> int:
    """`milliseconds(0.25)` -> 250, at least 1; None: 0, which stands for no bound."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


class Slot:
    """Inserts value `source`, or what `path` ("key.0.name") finds in it."""

    __slots__ = ("escape", "path", "source")

    def __init__(self, source: int, path: str = "", escape: int = PLAIN) -> None:
        self.source = source
        self.path = path
        self.escape = escape

    def __repr__(self) -> str:
        return f"Slot({self.source}, {self.path!r}, {self.escape})"


class IfPresent:
    """`parts`, unless value `source` is absent."""

    __slots__ = ("parts", "source")

    def __init__(self, source: int, parts: Sequence[Part]) -> None:
        self.source = source
        self.parts = parts


if TYPE_CHECKING:
    Part = str | Slot | IfPresent


class Rule:
    """One rule of an extraction program; see gb_rule in the header."""

    __slots__ = ("fold", "index", "into", "take", "when_path", "when_value")

    def __init__(
        self, take: str, into: str, *, when: tuple[str, str] = ("", ""), fold: str = "set", index: str = ""
    ) -> None:
        self.take = take
        self.into: int = getattr(lib, "GB_INTO_" + into.upper())
        self.when_path, self.when_value = when
        self.fold: int = getattr(lib, "GB_FOLD_" + fold.upper())
        self.index = index


class Retry:
    """When to try again; see gb_retry in the header. Without statuses the usual ones."""

    __slots__ = ("attempts_max", "factor_permille", "first_ms", "jitter_permille", "max_ms", "statuses")

    def __init__(
        self,
        attempts_max: int = 1,
        first_ms: int = 500,
        max_ms: int = 8_000,
        factor_permille: int = 2_000,
        jitter_permille: int = 500,
        statuses: Sequence[int] = (),
    ) -> None:
        self.attempts_max = attempts_max
        self.first_ms = first_ms
        self.max_ms = max_ms
        self.factor_permille = factor_permille
        self.jitter_permille = jitter_permille
        self.statuses = statuses

    @staticmethod
    def of(policy: RetryPolicy) -> Retry:
        """In the core's units."""
        return Retry(
            policy.attempts,
            round(policy.backoff * 1000),
            round(policy.max_backoff * 1000),
            round(policy.factor * 1000),
            500 if policy.jitter else 0,
            policy.statuses,
        )

    def words(self) -> tuple[int, ...]:
        room = (*self.statuses, *(0,) * 12)[:12]
        return (
            self.attempts_max,
            self.first_ms,
            self.max_ms,
            self.factor_permille,
            self.jitter_permille,
            len(self.statuses),
            *room,
        )


class Request:
    """An HTTP exchange; see gb_request in the header. Times in milliseconds, 0: none."""

    __slots__ = (
        "admission",
        "body",
        "cache",
        "connect_timeout_ms",
        "first_byte_timeout_ms",
        "headers",
        "http",
        "idempotency_header",
        "idle_timeout_ms",
        "insecure",
        "keep_body",
        "method",
        "redirects_max",
        "retry",
        "rules",
        "rules_required",
        "stream",
        "total_timeout_ms",
        "url",
    )

    def __init__(
        self,
        method: str,
        url: Sequence[Part],
        *,
        headers: Sequence[tuple[str, Sequence[Part]]] = (),
        body: Sequence[Part] | None = None,
        rules: tuple[Rule, ...] = (),
        rules_required: bool = False,
        keep_body: bool = False,
        insecure: bool = False,
        connect_timeout_ms: int = 10_000,
        idle_timeout_ms: int = 0,
        total_timeout_ms: int = 0,
        attempts_max: int = 1,
        http: HttpOptions = DEFAULT,
        redirects_max: int = 0,
        idempotency_header: str = "",
        stream: int = 0,
        admission: tuple[str, Admission] | None = None,
    ) -> None:
        self.method = method
        self.admission = admission
        """The controller's key, and what it is to respect."""
        self.url = url
        self.headers = headers
        self.body = body
        self.rules = rules
        self.rules_required = rules_required
        self.keep_body = keep_body
        self.insecure = insecure
        self.connect_timeout_ms = connect_timeout_ms
        self.idle_timeout_ms = idle_timeout_ms or milliseconds(http.idle_timeout)
        self.total_timeout_ms = total_timeout_ms
        self.retry = Retry(attempts_max)
        self.http = http
        self.first_byte_timeout_ms = milliseconds(http.first_byte_timeout)
        self.redirects_max = redirects_max
        self.idempotency_header = idempotency_header
        self.stream = stream
        self.cache: Any = None
        """A gb_cache, which must outlive the plan."""


class Cycle(Exception):
    """gb_plan_create found a cycle; `nodes` are its nodes' numbers."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__(nodes)
        self.nodes = nodes


class Plan:
    """A frozen plan. `handle` is a gb_plan; runs that use it keep it alive by themselves."""

    __slots__ = ("__weakref__", "handle", "input_count", "node_count")

    def __init__(self, handle: Any, node_count: int, input_count: int) -> None:
        self.handle = handle
        self.node_count = node_count
        self.input_count = input_count

    def continuations(self) -> list[int]:
        """For each node the callback that follows it in its linear segment, or NONE."""
        numbers = array("I", bytes(4 * self.node_count))
        if self.node_count:
            lib.gb_plan_continuations(self.handle, ffi.from_buffer("uint32_t[]", numbers))
        return numbers.tolist()

    def __del__(self) -> None:
        lib.gb_plan_destroy(self.handle)


class PlanBuilder:
    """Collects the parts of one plan."""

    def __init__(self, node_count: int = 0, input_count: int = 0) -> None:
        self.node_count = node_count
        self.input_count = input_count
        self._nodes = array("Q")  # six words a node, see `node`
        self._edges = array("I")
        self._edge_rules = array("I")
        self._natives = bytearray()
        self._predicates = array("I")
        self._retries = bytearray()
        self._segments = array("I")
        self._templates = array("I")
        self._headers = array("I")
        self._rules = array("I")
        self._requests = bytearray()
        self._routes = bytearray()
        self._routes_known: dict[Any, int] = {}
        self._admissions = bytearray()
        self._admissions_known: dict[Any, int] = {}
        self._text = bytearray()
        self._spans: dict[bytes, tuple[int, int]] = {}
        self._programs: dict[tuple[Rule, ...], tuple[int, int]] = {}

    def node(
        self,
        kind: int,
        flags: int = 0,
        body: int = 0,
        delay_ns: int = 0,
        *,
        join: int = 0,
        timeout_ns: int = 0,
        retry: int = 0,
        stand_in: int = 0,
        limits: int = 0,
    ) -> None:
        """The next node, in order."""
        self._nodes.extend(
            (kind | flags << 32, body | join << 32, delay_ns, timeout_ns, retry | stand_in << 32, limits)
        )

    def callbacks(self, count: int) -> None:
        """So many plain callbacks: what most nodes are."""
        self._nodes.extend((lib.GB_NODE_CALLBACK, 0, 0, 0, 0, 0) * count)

    def native(self, function: int, gives: str, arguments: Sequence[int], output_bytes: int) -> int:
        """The number of a new native function, by its address."""
        kind = {"void": _VOID, "double": _NUMBERS, "bytes": _BYTES}[gives]
        room = (*arguments, *(0,) * 8)[:8]
        self._natives += _NATIVE.pack(function, kind, len(arguments), *room, output_bytes)
        return len(self._natives) // _NATIVE.size - 1

    def retry(self, retry: Retry) -> int:
        """The number of a new retry policy, + 1 as `node` wants it."""
        self._retries += _RETRY.pack(*retry.words())
        return len(self._retries) // _RETRY.size

    def edge_rules(self, rules: dict[int, tuple[str, int, str]], edge_count: int) -> None:
        """By number of an edge: the path, the comparison and the JSON value that must hold of its source's output."""
        self._edge_rules = array("I", bytes(4 * edge_count))
        for number, (path, compare, value) in rules.items():
            self._predicates.extend((*self._span(path), *self._span(value), compare))
            self._edge_rules[number] = len(self._predicates) // 5

    def edges(self, pairs: Iterable[int]) -> None:
        """from, to, from, to, …"""
        self._edges.extend(pairs)

    def template(self, parts: Sequence[Part]) -> int:
        """The number of a new template."""
        first = len(self._segments) // 6
        self._segment_list(parts)
        self._templates.extend((first, len(self._segments) // 6 - first))
        return len(self._templates) // 2 - 1

    def _segment_list(self, parts: Sequence[Part]) -> None:
        add = self._segments.extend
        for part in parts:
            if isinstance(part, str):
                if part:
                    add((_LITERAL, 0, 0, 0, *self._span(part)))
            elif isinstance(part, Slot):
                add((_SLOT, part.escape, part.source, 0, *self._span(part.path)))
            else:
                at = len(self._segments)
                add((_IF_PRESENT, 0, part.source, 0, 0, 0))
                self._segment_list(part.parts)
                self._segments[at + 3] = (len(self._segments) - at) // 6 - 1

    def request(self, request: Request) -> int:
        """The number of a new request."""
        header_first = len(self._headers) // 3
        rows = [(self._span(name), self.template(value)) for name, value in request.headers]
        for span, value in rows:
            self._headers.extend((*span, value))
        flags = 0
        if request.body is not None:
            flags |= lib.GB_REQUEST_BODY
        if request.rules_required:
            flags |= lib.GB_REQUEST_RULES_REQUIRED
        if request.keep_body:
            flags |= lib.GB_REQUEST_KEEP_BODY
        if request.insecure:
            flags |= lib.GB_REQUEST_INSECURE
        self._requests += _REQUEST.pack(
            *self._span(request.method),
            self.template(request.url),
            self.template(request.body) if request.body is not None else 0,
            header_first,
            len(rows),
            *self._program(request.rules),
            flags,
            request.connect_timeout_ms,
            request.idle_timeout_ms,
            request.total_timeout_ms,
            *request.retry.words(),
            request.http.max_body_bytes,
            int(ffi.cast("uintptr_t", request.cache)) if request.cache is not None else 0,
            request.http.max_wire_bytes,
            request.first_byte_timeout_ms,
            request.http.max_header_bytes,
            request.http.max_event_bytes,
            request.http.max_json_depth,
            request.redirects_max,
            self._route(request.http),
            *self._span(request.idempotency_header),
            request.stream,
            self._admission(request.admission),
        )
        return len(self._requests) // _REQUEST.size - 1

    def _admission(self, admission: tuple[str, Admission] | None) -> int:
        """The number of an admission, + 1; 0: there is none."""
        if admission is None:
            return 0
        known = self._admissions_known.get(admission)
        if known is None:
            key, options = admission
            self._admissions += _ADMISSION.pack(*self._span(key), *options.numbers())
            known = self._admissions_known[admission] = len(self._admissions) // _ADMISSION.size
        return known

    def _route(self, http: HttpOptions) -> int:
        """The number of a route, + 1; 0: there is none."""
        route = http.route()
        if route is None:
            return 0
        known = self._routes_known.get(route)
        if known is None:
            proxy, no_proxy, ca_file, certificate, key, password, flags = route
            texts = (proxy, no_proxy, ca_file, "", certificate, key, password)
            self._routes += _ROUTE.pack(*[number for text in texts for number in self._span(text)], flags, 0)
            known = self._routes_known[route] = len(self._routes) // _ROUTE.size
        return known

    def _program(self, rules: tuple[Rule, ...]) -> tuple[int, int]:
        known = self._programs.get(rules)
        if known is not None:
            return known
        first = len(self._rules) // 10
        for rule in rules:
            self._rules.extend(self._span(rule.when_path))
            self._rules.extend(self._span(rule.when_value))
            self._rules.extend(self._span(rule.take))
            self._rules.extend(self._span(rule.index))
            self._rules.extend((rule.into, rule.fold))
        self._programs[rules] = first, len(rules)
        return first, len(rules)

    def _span(self, text: str) -> tuple[int, int]:
        data = text.encode("utf-8", "surrogatepass")
        known = self._spans.get(data)
        if known is None:
            known = self._spans[data] = len(self._text), len(data)
            self._text += data
        return known

    def build(self) -> Plan:
        """Freezes the plan.

        Raises:
            Cycle: the edges lead in a circle.
        """
        spec = ffi.new("gb_plan_spec *")
        spec.node_count = len(self._nodes) // 6
        spec.edge_count = len(self._edges) // 2
        spec.input_count = self.input_count
        spec.segment_count = len(self._segments) // 6
        spec.template_count = len(self._templates) // 2
        spec.header_count = len(self._headers) // 3
        spec.rule_count = len(self._rules) // 10
        spec.request_count = len(self._requests) // _REQUEST.size
        spec.native_count = len(self._natives) // _NATIVE.size
        spec.predicate_count = len(self._predicates) // 5
        spec.retry_count = len(self._retries) // _RETRY.size
        spec.route_count = len(self._routes) // _ROUTE.size
        spec.admission_count = len(self._admissions) // _ADMISSION.size
        # The arrays must outlive the call: they are all attributes, and `views` keeps cffi's hold on them.
        views = [
            ffi.from_buffer("gb_node[]", self._nodes),
            ffi.from_buffer("uint32_t[]", self._edges),
            ffi.from_buffer("gb_segment[]", self._segments),
            ffi.from_buffer("gb_range[]", self._templates),
            ffi.from_buffer("gb_header[]", self._headers),
            ffi.from_buffer("gb_rule[]", self._rules),
            ffi.from_buffer("gb_request[]", self._requests),
            ffi.from_buffer("uint8_t[]", self._text),
            ffi.from_buffer("gb_native[]", self._natives),
            ffi.from_buffer("gb_predicate[]", self._predicates),
            ffi.from_buffer("gb_retry[]", self._retries),
            ffi.from_buffer("uint32_t[]", self._edge_rules),
            ffi.from_buffer("gb_route[]", self._routes),
            ffi.from_buffer("gb_admission[]", self._admissions),
        ]
        spec.nodes, spec.edges, spec.segments, spec.templates = views[0:4]
        spec.headers, spec.rules, spec.requests, spec.text.ptr = views[4:8]
        spec.natives, spec.predicates, spec.retries = views[8:11]
        if self._edge_rules:
            spec.edge_rules = views[11]
        spec.routes = views[12]
        spec.admissions = views[13]
        spec.text.len = len(self._text)
        cycle = ffi.new("gb_cycle *")
        handle = ffi.new("gb_plan **", NULL)
        status = lib.gb_plan_create(spec, cycle, handle)
        if status == CYCLE:
            raise Cycle([cycle.nodes[i] for i in range(cycle.count)])
        check(status, "making a plan")
        return Plan(handle[0], spec.node_count, self.input_count)
