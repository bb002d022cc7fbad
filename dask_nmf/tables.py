"""Tables as text and as HTML, for terminals, notebooks and reports: all text escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]


def told(value: Any) -> str:
    """A cell: numbers to six digits, None as a dash."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def ends(rows: Sequence[Row], most: int = 10) -> list[Row]:
    """The first and the last of many rows, and a row of dots between."""
    if len(rows) <= most:
        return list(rows)
    dots = {name: "..." for name, value in rows[0].items() if value is not None}
    return [*rows[:3], dots, *rows[4 - most :]]


def as_text(rows: Sequence[Row]) -> str:
    """A line for each row, below the names of the columns; what is None everywhere is left out."""
    names = _columns(rows)
    lines = [names, *([told(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def as_html(rows: Sequence[Row]) -> str:
    """The same as an HTML table."""
    names = _columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(told(row.get(name)))}</td>' for name in names)}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_as_text(facts: Iterable[tuple[str, Any]]) -> str:
    """A line for each label and its value."""
    lines = [(label, told(value)) for label, value in facts]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


def facts_as_html(facts: Iterable[tuple[str, Any]]) -> str:
    """The same as an HTML table."""
    left = 'style="text-align:left"'
    cells = "".join(
        f"<tr><th {left}>{escape(label)}</th><td {left}>{escape(told(value))}</td></tr>"
        for label, value in facts
    )
    return f"<table>{cells}</table>"


def _columns(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) is not None for row in rows)]
