"""What users and stored data rely on stays as it is, however the code behind it is arranged."""

from __future__ import annotations

import pytest

from . import surface


@pytest.mark.parametrize("name", surface.SURFACES)
def test_what_others_rely_on_is_unchanged(name: str) -> None:
    expected = (surface.HERE / f"{name}.json").read_text()
    assert surface.text(name) == expected, (
        "where this is meant: python -m tests.golden.surface, and say so in the commit"
    )
