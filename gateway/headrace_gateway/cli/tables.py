"""Lists on the console, readable at any width.

a terminal that is wide enough    a table, of which some columns may fold
a narrower terminal               an entry below the other, one line a value
a pipe or a file                  a table with one line an entry, never folded and never cut
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LEAST_FOLDED = 10
"""Fewest characters a line of a column that folds."""
_PADDING = 2
"""Spaces of a table beside each column."""


@dataclass(frozen=True, slots=True)
class Column:
    """`folds`: where the terminal is too narrow for the table, the column's text goes on in the next line."""

    name: str
    folds: bool = False
    justify: Literal["left", "right"] = "left"


def print_list(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print one entry a row, with one text (of Rich's markup) for each column."""
    table, least, whole = Table(box=None), 0, 0
    for column, texts in zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        longest = max(len(column.name), *(Text.from_markup(text).cell_len for text in texts), 0)
        narrowest = min(longest, _LEAST_FOLDED) if column.folds else longest
        table.add_column(
            column.name,
            justify=column.justify,
            no_wrap=not column.folds,
            overflow="fold",
            min_width=narrowest,
            max_width=longest,
        )
        least, whole = least + narrowest + _PADDING, whole + longest + _PADDING
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        table.width = whole
        console.print(table, soft_wrap=True)  # written as it is, however long a line is
    elif least <= console.width:
        console.print(table, soft_wrap=False)
    else:
        _print_entries(console, columns, rows)


def _print_entries(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    widest = max(len(column.name) for column in columns)
    for number, row in enumerate(rows):
        if number:
            console.print()
        for column, text in zip(columns, row, strict=True):
            console.print(f"[dim]{column.name:{widest}}[/]  {text}", soft_wrap=True, highlight=False)
