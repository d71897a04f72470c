"""The Lua scripts over a job's keys (lua/*.lua): how their text is assembled, and how they are called.

    prelude.lua ─► sound.lua ─► the script       one text; scripts that must work on a damaged job leave out sound.lua
                     │
                     └ a figure of the ledger is not a number: nothing changes, `Damaged` names the key and the field

Invariant: a call makes all of its changes, or raises and makes none. So a script checks everything that it reads before
its first write.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from .client import is_transient, run
from .json_records import damaged
from .keys import JobKeys

_OF_ANY_STATE = ("close", "move", "rest", "drain")
"""Scripts that also work on a job whose ledger is damaged, so that it can be ended."""
_DAMAGED = re.compile(r"damaged<(?P<where>.*?)>(?P<why>.*?)(,? script: |$)", re.DOTALL)
"""The error that `damaged` of prelude.lua raises, as Redis reports it; Redis appends text of its own."""


@cache
def script_source(name: str) -> str:
    """The text of the script `name`; its KEYS are `JobKeys.ledger_scripts`."""
    folder = resources.files(__package__) / "lua"
    parts = ["prelude", *([] if name in _OF_ANY_STATE else ["sound"]), name]
    return "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


class Script:
    """One script, for any job."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._name = name
        self._script = redis.register_script(script_source(name))

    async def __call__(self, keys: JobKeys, *arguments: Any) -> Any:
        """Run the script. The first argument is the time in Unix seconds, or '' for Redis' own. Raises `Damaged`."""
        try:
            return await run(self._script(keys=keys.ledger_scripts, args=arguments))
        except ResponseError as error:
            if is_transient(error) or isinstance(error, NoScriptError) or "script" not in str(error):
                raise
            found = _DAMAGED.search(str(error))
            where, why = (found["where"], found["why"]) if found else (f"{keys.prefix}*", f" {self._name}.lua: {error}")
            raise damaged(where, why.strip()) from error
