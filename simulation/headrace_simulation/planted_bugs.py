"""Bugs planted on purpose, in the simulation only: a campaign that does not find them would prove nothing.

fencing_off                 commits, claims and settlements of fenced-out workers and learners are accepted
lease_same_token            an expired lease is issued again with the token of its last holder
checkpoint_before_manifest  a checkpoint is offered, and its groups deleted, before its manifest is written
"""

from __future__ import annotations

PLANTS = ("fencing_off", "lease_same_token", "checkpoint_before_manifest")

_FENCES = (
    ("if field('term') ~= ARGV[2] then return 'fenced' end", ""),
    ("lease[1] == 'leased' and lease[2] == token and token ~= ''", "lease[1] == 'leased'"),
)
_NEW_TOKEN = "local token = worker .. '#' .. redis.call('HINCRBY', LEDGER, 'tokens', 1)"
_OLD_TOKEN = """local token = redis.call('HGET', GROUP .. group, 'token')
  if not token or token == '' then token = worker .. '#' .. redis.call('HINCRBY', LEDGER, 'tokens', 1) end"""


class PlaceLost(ValueError):
    """The script text that a planted bug replaces was not found, so that a campaign could not find the bug."""


def planted(plant: str | None, name: str, source: str) -> str:
    """A ledger script with the bug planted. Raises `PlaceLost` if the text to replace is not in the script."""
    if plant == "fencing_off" and name not in ("append", "script"):
        return _replaced(source, _FENCES if name in ("claim", "settle") else _FENCES[1:])
    if plant == "lease_same_token" and name == "admit":
        return _replaced(source, ((_NEW_TOKEN, _OLD_TOKEN),))
    return source


def _replaced(source: str, changes: tuple[tuple[str, str], ...]) -> str:
    for old, new in changes:
        if old not in source:
            raise PlaceLost(f"the planted bug has lost its place in the script: {old!r}")
        source = source.replace(old, new)
    return source
