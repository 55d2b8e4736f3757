"""Tables for people, and the same rows for machines. A ratio column compares a row with a named peer of its own table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]  # "peer" and numbers; "note" where a peer has none


class Column:
    __slots__ = ("key", "show", "title")

    def __init__(self, key: str, title: str, show: Callable[[Any], str] | str = "{}") -> None:
        self.key = key
        self.title = title
        self.show: Callable[[Any], str] = show.format if isinstance(show, str) else show


class Table:
    """Collects rows, then shows them; `problems` names what makes the bench fail."""

    def __init__(self, title: str, columns: Sequence[Column], ratio_of: str = "", ratio_to: Sequence[str] = ()) -> None:
        self.title = title
        self.columns = list(columns)
        self.ratio_of = ratio_of
        self.ratio_to = ratio_to
        self.rows: list[Row] = []
        self.problems: list[str] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        """Ratios, and the check that everybody in a group (rows with equal "group") did the same work."""
        for row in self.rows:
            for name in self.ratio_to:
                base = next((r for r in self.rows if r["peer"] == name and r.get("group") == row.get("group")), {})
                if self.ratio_of in row and base.get(self.ratio_of):
                    row[f"x {name}"] = row[self.ratio_of] / base[self.ratio_of]
        expected: dict[Any, tuple[str, int]] = {}
        for row in self.rows:
            for key in ("checksum", "checksum_head"):  # the second: of the beginning, where a slow peer does no more
                if key not in row:
                    continue
                peer, checksum = expected.setdefault((row.get("group"), key), (row["peer"], row[key]))
                if checksum != row[key]:
                    row["note"] = "OTHER RESULTS"
                    self.problems.append(f"{self.title}: {row['peer']} and {peer} did not do the same work")

    def all_columns(self) -> list[Column]:
        """The ratios stand behind the number they compare; a column nobody fills is left out."""
        columns = []
        for column in self.columns:
            if not any(column.key in row for row in self.rows):
                continue
            columns.append(column)
            if column.key == self.ratio_of:
                columns += [Column(f"x {name}", f"x {name}", "{:.2f}") for name in self.ratio_to]
        if any("note" in row for row in self.rows):
            columns.append(Column("note", "note"))
        return columns

    def text(self) -> str:
        columns = self.all_columns()
        lines = [[column.title for column in columns]]
        lines += [[self.cell(column, row) for column in columns] for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        is_word = [column.key in ("peer", "group", "note") for column in columns]

        def shown(line: list[str]) -> str:
            cells = (c.ljust(w) if word else c.rjust(w) for c, w, word in zip(line, widths, is_word, strict=True))
            return "| " + " | ".join(cells) + " |"

        rule = (
            "|"
            + "|".join("-" * (w + 2) if word else "-" * (w + 1) + ":" for w, word in zip(widths, is_word, strict=True))
            + "|"
        )
        return "\n".join([f"## {self.title}", "", shown(lines[0]), rule, *map(shown, lines[1:]), ""])

    def cell(self, column: Column, row: Row) -> str:
        if column.key in row:
            return column.show(row[column.key])
        return "" if column.key == "note" else "-"

    def data(self) -> dict[str, Any]:
        return {"title": self.title, "rows": self.rows}


def outcome_row(peer: str, numbers: dict[str, Any], table: Table, group: str | None = None) -> Row | None:
    """A row without numbers where the peer brought none, entered in the table; None where it brought some. A peer that is
    not installed is no problem, unless it is graphbit."""
    row: Row = {"peer": peer} if group is None else {"peer": peer, "group": group}
    if "absent" in numbers:
        row["note"] = f"not installed ({numbers['absent']})"
        if peer.startswith("graphbit"):
            table.problems.append(f"{table.title}: graphbit cannot be imported")
    elif "failed" in numbers:
        row["note"] = f"FAILED: {numbers['failed']}"
        table.problems.append(f"{table.title}: {peer}: {numbers['failed']}")
    else:
        return None
    table.add(row)
    return row
