"""Settings that may change while a job runs, and the log of their changes.

    gateway  SettingsLog.change ──► lua/change.lua: appends to the log ──► signal
    learner  looks up the settings of version v in the log; claims only while it has read the whole log
    ledger   admits within the newest max_staleness; settles version v by the max_staleness of v

Invariants: a change is in the log before it takes effect. It takes effect from a policy version of which no group is
claimed yet, so that a step has one set of settings from its first claim to its settlement, and a learner that replays
it uses the same ones. The versions in the log never decrease.
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
from ..types.job import ENDED

CHANGEABLE = ("max_staleness", "group_size", "learning_rate")
"""Hyperparameters that may change while a job runs."""
Value = int | float | None


class SettingChange(msgspec.Struct, frozen=True):
    """One entry of the log."""

    time: float
    from_version: int
    """The first policy version whose update it applies to; for `group_size`, the first whose leases it applies to."""
    name: str
    before: Value
    after: Value
    by: str
    """Name of the API key, or user, that requested it."""


class SettingsLog:
    """One job's log, as far as it has been read (`refresh`).

    `settings` may be the job's settings of any time, because the log overrules them.
    """

    def __init__(self, redis: Redis, job_id: str, settings: Hyperparameters) -> None:
        self._redis = redis
        self._keys = JobKeys(job_id)
        self._settings = settings
        self._script = Script(redis, "change")
        self.changes: list[SettingChange] = []
        """Oldest first."""

    async def refresh(self) -> None:
        """Read the entries that are new. Raises `Damaged`: with an entry missing, the settings would be unknown."""
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
        """The settings after all changes in the log."""
        found = {c.name: c.after for c in self.changes}
        return self._settings.model_copy(update=found) if found else self._settings

    async def change(self, values: Mapping[str, Value], by: str) -> list[SettingChange] | None:
        """Change settings from the next unclaimed version on. Returns the entries added to the log.

        Returns None, and changes nothing, if the log has grown since it was read: `refresh` and try again. Raises
        `InvalidState` for a job that has ended.
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
