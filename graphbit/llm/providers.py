"""Providers: one row each. A vendor that speaks a known dialect is a row here and nothing else."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Provider:
    """A vendor: which dialect it speaks, where, and what is peculiar about it."""

    __slots__ = (
        "base_url",
        "dialect",
        "key_length_min",
        "key_variable",
        "model",
        "name",
        "quirks",
        "title",
        "url_variable",
    )

    def __init__(
        self,
        name: str,
        title: str,
        *,
        dialect: str = "openai",
        base_url: str = "",
        key_variable: str = "",
        url_variable: str = "",
        model: str = "",
        key_length_min: int = 8,
        quirks: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.title = title
        """As people write it."""
        self.dialect = dialect
        """The module in graphbit.llm.dialects that knows its wire format."""
        self.base_url = base_url
        self.key_variable = key_variable
        """The environment variable for the key; "": there is none."""
        self.url_variable = url_variable
        """The environment variable for the base URL; "": there is none."""
        self.model = model
        """The model where none is named; "": one must be."""
        self.key_length_min = key_length_min
        """Keys for `base_url` are at least so long."""
        self.quirks: Mapping[str, str] = quirks or {}
        """What the dialect must do differently; each dialect lists those it knows."""

    def __repr__(self) -> str:
        return f"<provider {self.name}>"


PROVIDERS = {
    row.name: row
    for row in (
        Provider(
            "openai",
            "OpenAI",
            base_url="https://api.openai.com/v1",
            key_variable="OPENAI_API_KEY",
            url_variable="OPENAI_BASE_URL",
            model="gpt-4o-mini",
            key_length_min=20,
            quirks={"token_limit": "max_completion_tokens", "idempotency_header": "Idempotency-Key"},
        ),
        Provider("openai_compatible", "OpenAI-compatible"),
    )
}
