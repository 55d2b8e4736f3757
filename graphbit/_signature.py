"""What a function wants to be called with.

    parameters(lambda text, limit=3: …)  ->  (Parameter("text"), Parameter("limit", optional=True))

Plain functions are read from their code object, which costs a tenth of inspect.signature.
"""

from __future__ import annotations

from types import FunctionType, MethodType

from graphbit.errors import WorkflowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ASYNC = 0x80  # inspect.CO_COROUTINE
_VARARGS, _VARKEYWORDS = 0x04, 0x08


class Parameter:
    """A name a function can be given a value under."""

    __slots__ = ("keyword_only", "name", "optional", "positional_only")

    def __init__(
        self, name: str, optional: bool = False, keyword_only: bool = False, positional_only: bool = False
    ) -> None:
        self.name = name
        self.optional = optional
        self.keyword_only = keyword_only
        self.positional_only = positional_only


def parameters(function: Callable[..., Any]) -> tuple[tuple[Parameter, ...], bool]:
    """The function's parameters, without *args and **kwargs, and whether it takes any keyword (has **kwargs)."""
    bound = 0
    plain: Any = function
    if plain.__class__ is MethodType:
        plain, bound = plain.__func__, 1
    if plain.__class__ is not FunctionType or "__wrapped__" in plain.__dict__ or "__signature__" in plain.__dict__:
        return _inspected(function)
    code = plain.__code__
    positional = code.co_argcount
    if not positional and not code.co_kwonlyargcount and not code.co_flags & _VARKEYWORDS:
        return (), False
    names = code.co_varnames
    first_optional = positional - len(plain.__defaults__ or ())
    found = [
        Parameter(names[i], i >= first_optional, False, i < code.co_posonlyargcount) for i in range(bound, positional)
    ]
    keyword_defaults = plain.__kwdefaults__ or {}
    for name in names[positional : positional + code.co_kwonlyargcount]:
        found.append(Parameter(name, name in keyword_defaults, True))
    return tuple(found), bool(code.co_flags & _VARKEYWORDS)


def _inspected(function: Callable[..., Any]) -> tuple[tuple[Parameter, ...], bool]:
    import inspect

    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise WorkflowError(
            f"{function!r} does not say which parameters it has; wrap it in a function or lambda that does"
        ) from error
    found = []
    any_keyword = False
    for it in signature.parameters.values():
        if it.kind is it.VAR_POSITIONAL:
            continue
        if it.kind is it.VAR_KEYWORD:
            any_keyword = True
            continue
        found.append(
            Parameter(it.name, it.default is not it.empty, it.kind is it.KEYWORD_ONLY, it.kind is it.POSITIONAL_ONLY)
        )
    return tuple(found), any_keyword


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: `async def`, also behind a method, a partial or a `__call__`."""
    plain: Any = function
    while True:
        if plain.__class__ is FunctionType:
            # The mark is what inspect.markcoroutinefunction (3.12) leaves.
            return bool(plain.__code__.co_flags & _ASYNC) or "_is_coroutine_marker" in plain.__dict__
        if plain.__class__ is MethodType:
            plain = plain.__func__
        elif plain.__class__.__name__ == "partial" and hasattr(plain, "func"):
            plain = plain.func
        elif isinstance(plain, type):
            return False
        else:
            call = next((it.__dict__["__call__"] for it in type(plain).__mro__ if "__call__" in it.__dict__), None)
            if call.__class__ is not FunctionType:
                return False
            plain = call
