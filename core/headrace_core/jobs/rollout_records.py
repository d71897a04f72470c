"""Recorded rollouts: a few groups of each settled step, with the role of every token in that step.

    learner: step settled ──► add ─► headrace:{job}:rollouts         stream, entry id <step>-<group>
                                     headrace:{job}:rollouts_index   step of each recorded group, bytes in total
    gateway ◄── walk

Invariants: a group of a step is recorded at most once, however often the step is replayed, because entries are appended
in ascending (step, group) only; the entries never exceed the byte limit, the oldest are removed first; which groups of
a step are recorded depends on their ids alone, never on their age, length or reward.

    field            shape  dtype  unit / meaning
    prompt_ids       [P]    <i4    token ids of the prompt
    token_ids        [T]    <i4    tokens after the prompt
    versions         [T]    <i4    policy version that sampled the token, or scored it; -1 if none
    logprobs         [T]    <f4    behaviour log-probability; NaN where versions is -1
    importance       [T]    <f4    π_prox/π_b as the loss weighted the token; NaN where it was not computed, because the
                                   token is not in the gradient or its group has none (equal rewards)
    roles            [T]    u1     `TokenRole`
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from redis.asyncio import Redis

from ..errors import Damaged
from ..redis_access.client import run
from ..redis_access.json_records import UNREADABLE, damaged, log_damaged_once, whole_number
from ..redis_access.keys import JobKeys
from ..types.trajectory import F32, I32, U8

WIRE_VERSION = 1
MAX_COMPLETIONS = 32
"""Completions recorded of one group: the first ones, which are a fair sample, because all are sampled alike."""

# KEYS: stream, index, ledger. ARGV: byte limit, then (step, group, record)…; returns how many were new. If the job has
# a share of Redis' memory (a field of the ledger), the records may take at most a quarter of it.
_ADD = """
local step, group = unpack(redis.call('HMGET', KEYS[2], 'last_step', 'last_group'))
step, group = tonumber(step or 0), tonumber(group or -1)
local bytes, new = tonumber(redis.call('HGET', KEYS[2], 'bytes') or 0), 0
for i = 2, #ARGV, 3 do
  local s, g = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if s > step or (s == step and g > group) then
    redis.call('XADD', KEYS[1], ARGV[i] .. '-' .. ARGV[i + 1], 'data', ARGV[i + 2])
    redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i])
    bytes, step, group, new = bytes + #ARGV[i + 2], s, g, new + 1
  end
end
local share, most = tonumber(redis.call('HGET', KEYS[3], 'share') or 0), tonumber(ARGV[1])
if share > 0 then most = math.min(most, share / 4) end
while bytes > most do
  local id, fields = unpack(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1])
  redis.call('XDEL', KEYS[1], id)
  redis.call('HDEL', KEYS[2], string.match(id, '-(%d+)$'))
  bytes = bytes - #fields[2]
end
redis.call('HSET', KEYS[2], 'bytes', bytes, 'last_step', step, 'last_group', group)
return new
"""


class TokenRole(IntEnum):
    """Whether a token contributed to the gradient of its step, or why it did not."""

    TRAINED = 0
    TOO_OLD = 1
    """Beyond max_staleness."""
    ZERO_WEIGHT = 2
    """The token's loss weight is 0."""
    NOT_SAMPLED = 3
    """The policy neither sampled nor scored it, because it is the environment's."""
    NO_REWARD = 4
    """Its completion has no reward, or the greedy completion it would be compared with has none."""
    GREEDY = 5
    """It belongs to the greedy completion, which is a baseline and not trained on."""


class RecordedCompletion(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One completion. The arrays are packed as in the module's table; `ints`, `floats` and `roles_of` unpack them."""

    token_ids: bytes
    versions: bytes
    logprobs: bytes
    importance: bytes
    roles: bytes
    reward: float | None
    """The reward from the grader; None: not applicable, which is not 0."""
    trained_reward: float | None
    """The reward that the step trained on. It differs from `reward` where the learner recomputed it for the policy that
    was updated (see `types.likelihood`)."""
    components: dict[str, float]
    advantage: float | None
    """Mean advantage of its sampled tokens in the gradient; None if there are none."""
    finish_reason: str
    greedy: bool
    notes: dict[str, str] = {}
    """Texts that the reward returned, by name."""


class Rollout(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One group as a step consumed it."""

    wire_version: int = WIRE_VERSION
    group: int
    step: int
    """1 for the first. It updated policy version `step` − 1, relative to which ages are counted."""
    row: int
    """Row of the training file, 0 for the first."""
    attempt: int
    """Which lease of the group it was committed under, 1 for the first."""
    prompt_ids: bytes
    completions: list[RecordedCompletion]
    group_size: int
    """Completions of the group, without the greedy one; at most `MAX_COMPLETIONS` of them are recorded."""

    @property
    def id(self) -> str:
        """`<step>-<group>`, which is also the id of its entry in the stream."""
        return f"{self.step}-{self.group}"

    @property
    def version(self) -> int:
        """The policy version that was updated."""
        return self.step - 1


_decoder = msgspec.msgpack.Decoder(Rollout)


def pack(array: npt.NDArray[np.generic], dtype: np.dtype[np.generic]) -> bytes:
    """An array as the bytes of a record's field."""
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def ints(packed: bytes) -> npt.NDArray[np.int32]:
    """Unpacks token ids or versions, [T]."""
    return np.frombuffer(packed, I32)


def floats(packed: bytes) -> npt.NDArray[np.float32]:
    """Unpacks log-probabilities or staleness weights, [T]."""
    return np.frombuffer(packed, F32)


def roles_of(packed: bytes) -> npt.NDArray[np.uint8]:
    """Unpacks the `TokenRole` of each token, [T]."""
    return np.frombuffer(packed, U8)


def chosen(groups: Iterable[int], count: int) -> list[int]:
    """The `count` groups of a step to record, ascending: those whose ids have the smallest hashes."""
    hashed = sorted(groups, key=lambda g: hashlib.blake2b(str(g).encode(), digest_size=8).digest())
    return sorted(hashed[:count])


class RolloutStore:
    """The recorded groups of one job."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        keys = JobKeys(job_id)
        self._redis = redis
        self._stream, self._index, self._ledger = keys.rollouts, keys.rollouts_index, keys.ledger
        self._script = redis.register_script(_ADD)

    async def add(self, rollouts: Sequence[Rollout], max_bytes: int) -> int:
        """Record groups of one step, in ascending order; returns how many were new.

        Then the oldest records of the job are removed until all of them fit in `max_bytes`.
        """
        flat = [x for r in rollouts for x in (r.step, r.group, msgspec.msgpack.encode(r))]
        return int(await run(self._script(keys=[self._stream, self._index, self._ledger], args=[max_bytes, *flat])))

    async def walk(
        self, *, after: tuple[int, int] | None = None, step: int | None = None, newest_first: bool = True
    ) -> AsyncIterator[Rollout]:
        """Yields the records one by one, from beyond the (step, group) `after`; of all steps, or of one `step` only.

        One round trip to Redis per record. Damaged records are logged and skipped.
        """
        low, high = ("-", "+") if step is None else (str(step), str(step))
        if after is not None and step is not None and (after[0] < step if newest_first else after[0] > step):
            return  # the cursor is already past the step
        if after is not None and step in (None, after[0]):
            cursor = f"({after[0]}-{after[1]}"
            low, high = (low, cursor) if newest_first else (cursor, high)
        while True:
            if newest_first:
                found = await run(self._redis.xrevrange(self._stream, max=high, min=low, count=1))
            else:
                found = await run(self._redis.xrange(self._stream, min=low, max=high, count=1))
            if not found:
                return
            place, fields = found[0]
            low, high = (low, f"({place.decode()}") if newest_first else (f"({place.decode()}", high)
            try:
                rollout = _decoded(fields.get(b"data", b""), self._where(place))
            except Damaged as error:
                log_damaged_once(error)
            else:
                yield rollout

    async def of_group(self, group: int) -> Rollout | None:
        """The record of one group; None if it is not recorded. Raises `Damaged`."""
        step = await run(self._redis.hget(self._index, str(group)))
        place: Any = None if step is None else f"{whole_number(step, f'{self._index} {group}')}-{group}"
        found = await run(self._redis.xrange(self._stream, min=place, max=place)) if place else []
        return _decoded(found[0][1].get(b"data", b""), self._where(found[0][0])) if found else None

    def _where(self, place: bytes) -> str:
        return f"{self._stream} {place.decode()}"


def _decoded(data: bytes, where: str) -> Rollout:
    """Decodes and checks one record. Raises `Damaged`."""
    try:
        rollout = _decoder.decode(data)
    except UNREADABLE as error:
        raise damaged(where, f"not a kept group: {error}") from error
    if rollout.wire_version != WIRE_VERSION:
        raise damaged(where, f"its wire version is {rollout.wire_version}, and this side's {WIRE_VERSION}")
    if len(rollout.prompt_ids) % I32.itemsize or not all(map(_is_consistent, rollout.completions)):
        raise damaged(where, "its arrays are not of one length, or hold what they cannot")
    return rollout


def _is_consistent(record: RecordedCompletion) -> bool:
    """Whether each array has one element a token, and each role is a `TokenRole`."""
    arrays = (record.token_ids, record.versions, record.logprobs, record.importance)
    size, largest_role = len(record.roles), max(record.roles, default=0)
    return all(len(packed) == size * I32.itemsize for packed in arrays) and largest_role <= max(TokenRole)
