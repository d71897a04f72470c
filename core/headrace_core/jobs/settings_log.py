"""Settings that may change while a job runs, and the record of their changes.

    gateway  Live.change ──► lua/change.lua: appends to the record ──► signal
    learner  asks the record what holds for version v; claims only while it knows all of the record
    ledger   admits within the newest bound; settles version v by the bound of v

Invariants: a change is in the record before it acts; it holds from a policy version of which no group is claimed yet,
so a step has one set of settings from its first claim to its settlement, and whoever trains it again finds the same;
the versions of the record never decrease.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec
from redis.asyncio import Redis

from ..config.hyperparameters import Hyperparameters
from ..errors import InvalidState
from ..redis_access.client import run
from ..redis_access.json_records import decode_record
from ..redis_access.keys import JobKeys
from ..redis_access.scripts import Script
from .job_store import ENDED

CHANGEABLE = ("max_staleness", "group_size", "learning_rate")
"""Hyperparameters that may change while a job runs."""
Value = int | float | None


class SettingChange(msgspec.Struct, frozen=True):
    """One line of the record."""

    time: float
    from_version: int
    """The first policy version whose update it holds for; of `group_size`, whose leases."""
    name: str
    before: Value
    after: Value
    by: str
    """Name of whoever asked for it."""


class SettingsLog:
    """One job's record, as far as it was read. `settings` are the job's, of any time: the record overrules them."""

    def __init__(self, redis: Redis, job_id: str, settings: Hyperparameters) -> None:
        self._redis = redis
        self._keys = JobKeys(job_id)
        self._settings = settings
        self._script = Script(redis, "change")
        self.changes: list[SettingChange] = []
        """Oldest first."""

    async def refresh(self) -> None:
        """Read on. Raises `Damaged`: without one of them, nobody knows what holds."""
        raw = await run(self._redis.lrange(self._keys.changes, len(self.changes), -1))
        known = len(self.changes)
        self.changes += [
            decode_record(line, SettingChange, f"{self._keys.changes}[{i}]") for i, line in enumerate(raw, start=known)
        ]

    def at(self, version: int) -> Hyperparameters:
        """The settings of the step that updates policy `version`."""
        found: dict[str, Value] = {}
        for change in self.changes:
            if change.from_version <= version:
                found[change.name] = change.after
            else:
                found.setdefault(change.name, change.before)
        return self._settings.model_copy(update=found) if found else self._settings

    @property
    def newest(self) -> Hyperparameters:
        """The settings from the newest change on."""
        found = {c.name: c.after for c in self.changes}
        return self._settings.model_copy(update=found) if found else self._settings

    async def change(self, values: Mapping[str, Value], by: str) -> list[SettingChange] | None:
        """Change these from the next version on that is not claimed; what was recorded.

        None where the record has grown since it was read: nothing changed then; look again. Raises `InvalidState` for a
        job that has ended.
        """
        newest = self.newest
        known, arguments = len(self.changes), list[bytes]()
        for name, after in values.items():
            if (before := getattr(newest, name)) != after:
                line = {"name": name, "before": before, "after": after, "by": by}
                arguments += (name.encode(), msgspec.json.encode(after), msgspec.json.encode(line))
        done = await self._script(self._keys, "", secrets.token_hex(8), known, " ".join(ENDED), *arguments)
        if done == b"again":
            return None
        if done != b"ok":
            raise InvalidState(f"the job is {done.decode()}: its settings can no longer change")
        await self.refresh()
        return self.changes[known : known + len(arguments) // 3]
