"""Lists on the console: whole at any width, and one line an entry where a program reads them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from headrace_gateway.cli.tables import Column, print_list

COLUMNS = [Column("step", justify="right"), Column("checkpoint"), Column("model", folds=True)]
ID = "ftckpt_" + "0123456789abcdef01234567"
MODEL = "ft:headrace/tiny-adder:mine:0123456789abcdef01234567:ckpt-step-30"
ROWS = [("30", ID, MODEL), ("7", ID[::-1], "[red]short[/]")]


def printed(width: int, terminal: bool, rows: list[tuple[str, str, str]] = ROWS) -> list[str]:
    text = io.StringIO()
    print_list(Console(file=text, width=width, force_terminal=terminal, color_system=None), COLUMNS, rows)
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_file_gets_one_line_an_entry(width: int) -> None:
    head, *lines = printed(width, terminal=False)
    assert head.split() == ["step", "checkpoint", "model"]
    assert [line.split() for line in lines] == [["30", ID, MODEL], ["7", ID[::-1], "short"]]


def test_a_wide_terminal_shows_a_table() -> None:
    head, *lines = printed(140, terminal=True)
    assert head.split() == ["step", "checkpoint", "model"]
    assert [line.split() for line in lines] == [["30", ID, MODEL], ["7", ID[::-1], "short"]]


@pytest.mark.parametrize("width", [53, 80])
def test_a_column_folds_where_the_table_is_too_wide(width: int) -> None:
    lines = printed(width, terminal=True)
    assert max(map(len, lines)) <= width
    assert [line for line in lines if ID in line or ID[::-1] in line] == [lines[1], lines[-1]]
    assert "".join(line[40:] for line in lines[1:-1]).replace(" ", "") == MODEL


def test_a_narrow_terminal_shows_an_entry_below_the_other() -> None:
    whole = [["step", "30"], ["checkpoint", ID], ["model", MODEL], [], ["step", "7"], ["checkpoint", ID[::-1]]]
    for width in (10, 40, 50):
        assert [line.split() for line in printed(width, terminal=True)] == [*whole, ["model", "short"]]


def test_an_empty_list_has_its_head_alone() -> None:
    assert [line.split() for line in printed(80, terminal=True, rows=[])] == [["step", "checkpoint", "model"]]
    assert [line.split() for line in printed(20, terminal=False, rows=[])] == [["step", "checkpoint", "model"]]
