"""The scripts over a job's keys (lua/*.lua): where their text is, and one way to call them.

    prelude.lua ─► sound.lua ─► the script       as one text; what ends a job, or is asked of one that may be damaged,
                     │                           does without sound.lua
                     └ a figure of the ledger is none: nothing is changed, `Damaged` names the key and the field

Invariant: a call changes all that it is to change, or raises. So a script looks at what it reads before it writes.
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
"""Scripts that a job whose ledger is damaged needs, too: it can be ended."""
_NAMED = re.compile(r"damaged<(?P<where>.*?)>(?P<why>.*?)(,? script: |$)", re.DOTALL)
"""As `damaged` of prelude.lua says it; what follows is Redis' own."""


@cache
def script_source(name: str) -> str:
    """A script over a job's keys; its KEYS are `JobKeys.ledger_scripts`."""
    folder = resources.files(__package__) / "lua"
    parts = ["prelude", *([] if name in _OF_ANY_STATE else ["sound"]), name]
    return "".join((folder / f"{part}.lua").read_text() for part in parts)


class Script:
    """One of them, for any job."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._name = name
        self._script = redis.register_script(script_source(name))

    async def __call__(self, keys: JobKeys, *arguments: Any) -> Any:
        """Its answer. The first argument is the time, '' for Redis's own. Raises `Damaged`."""
        try:
            return await run(self._script(keys=keys.ledger_scripts, args=arguments))
        except ResponseError as error:
            if is_transient(error) or isinstance(error, NoScriptError) or "script" not in str(error):
                raise
            found = _NAMED.search(str(error))
            where, why = (found["where"], found["why"]) if found else (f"{keys.prefix}*", f" {self._name}.lua: {error}")
            raise damaged(where, why.strip()) from error
