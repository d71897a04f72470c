"""What the learner consumed, kept for reading: of each settled step a few groups, with every token's part in it.

    learner: step settled ──► add ─► headrace:{job}:rollouts         stream, entry id <step>-<group>
                                     headrace:{job}:rollouts_index   where a group is, and how many bytes there are
    gateway ◄── walk

Invariants: a group of a step is there at most once, however often the step is replayed, because entries only ever come
in ascending (step, group); the entries' bytes never exceed the limit, the oldest go first; which groups of a step are
kept depends on their ids alone, never on their age, length or reward.

    field            shape  dtype  unit / meaning
    prompt_ids       [P]    <i4    token ids of the prompt
    token_ids        [T]    <i4    tokens after the prompt
    versions         [T]    <i4    policy version that sampled the token, or scored it; -1 if none
    logprobs         [T]    <f4    behaviour log-probability; NaN where versions is -1
    importance       [T]    <f4    π_prox/π_b as the loss weighted the token; NaN where nothing was computed: it is not
                                   in the gradient, or nothing of its group has one (equal rewards)
    parts            [T]    u1     `TokenRole`
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
from ..redis_access.json_records import UNREADABLE, damaged, name, whole_number
from ..redis_access.keys import JobKeys
from ..types.trajectory import F32, I32, U8

WIRE_VERSION = 1
MOST_COMPLETIONS = 32
"""Of one group: the first ones. They were sampled alike, so that the first are as good as any."""

# (limit in bytes, then step, group, record…) → how many were new. Where Redis' memory is shared out (KEYS[3], the
# ledger), they may take a quarter of what the job's encoded groups may.
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
    """What a token was to the gradient of its step: something, or why nothing."""

    TRAINED = 0
    TOO_OLD = 1
    """Beyond max_staleness."""
    ZERO_WEIGHT = 2
    """Its loss weight is 0."""
    NOT_SAMPLED = 3
    """The policy neither sampled nor scored it: the environment's."""
    NO_REWARD = 4
    """Its completion has no reward, or no greedy completion to be compared with."""
    GREEDY = 5
    """Of the greedy completion, which is only compared with."""


class RecordedCompletion(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One completion; the packed arrays are in the module's table, `ints`, `floats` and `parts_of` unpack them."""

    token_ids: bytes
    versions: bytes
    logprobs: bytes
    importance: bytes
    parts: bytes
    reward: float | None
    """As it was given; None: not applicable, which is not 0."""
    trained_reward: float | None
    """What the step trained on: another figure where it was computed anew, of the policy that was updated."""
    components: dict[str, float]
    advantage: float | None
    """Mean over its sampled tokens in the gradient; None where there are none."""
    finish_reason: str
    greedy: bool
    notes: dict[str, str] = {}
    """Texts that the reward gave beside it, by name."""


class Rollout(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One group as a step consumed it."""

    wire_version: int = WIRE_VERSION
    group: int
    step: int
    """1 for the first; it updated policy version `step` − 1, of which ages are counted."""
    row: int
    """Of the training file."""
    attempt: int
    """Which lease of the group brought it in."""
    prompt_ids: bytes
    completions: list[RecordedCompletion]
    group_size: int
    """Completions that the group had, the greedy one not counted; `MOST_COMPLETIONS` of them are kept."""

    @property
    def id(self) -> str:
        """Sorts by step, then by group; also its place in the stream."""
        return f"{self.step}-{self.group}"

    @property
    def version(self) -> int:
        """The policy version that was updated."""
        return self.step - 1


_decoder = msgspec.msgpack.Decoder(Rollout)


def pack(array: npt.NDArray[np.generic], dtype: np.dtype[np.generic]) -> bytes:
    """An array as a field holds it."""
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def ints(packed: bytes) -> npt.NDArray[np.int32]:
    """Token ids or versions, [T]."""
    return np.frombuffer(packed, I32)


def floats(packed: bytes) -> npt.NDArray[np.float32]:
    """Log-probabilities or staleness weights, [T]."""
    return np.frombuffer(packed, F32)


def parts_of(packed: bytes) -> npt.NDArray[np.uint8]:
    """`TokenRole` of each token, [T]."""
    return np.frombuffer(packed, U8)


def chosen(groups: Iterable[int], count: int) -> list[int]:
    """Which of a step's groups are kept, ascending: the `count` whose ids' hashes are smallest."""
    hashed = sorted(groups, key=lambda g: hashlib.blake2b(str(g).encode(), digest_size=8).digest())
    return sorted(hashed[:count])


class RolloutStore:
    """The kept groups of one job."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        keys = JobKeys(job_id)
        self._redis = redis
        self._stream, self._index, self._ledger = keys.rollouts, keys.rollouts_index, keys.ledger
        self._script = redis.register_script(_ADD)

    async def add(self, rollouts: Sequence[Rollout], most_bytes: int) -> int:
        """Keep these groups of one step, ascending, within `most_bytes` of all; returns how many were not there yet."""
        flat = [x for r in rollouts for x in (r.step, r.group, msgspec.msgpack.encode(r))]
        return int(await run(self._script(keys=[self._stream, self._index, self._ledger], args=[most_bytes, *flat])))

    async def walk(
        self, *, after: tuple[int, int] | None = None, step: int | None = None, newest_first: bool = True
    ) -> AsyncIterator[Rollout]:
        """One by one, beyond the (step, group) of `after`; of all steps, or of one. One round trip to Redis each."""
        low, high = ("-", "+") if step is None else (str(step), str(step))
        if after is not None and step is not None and (after[0] < step if newest_first else after[0] > step):
            return  # the step lies behind the cursor
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
                name(error)
            else:
                yield rollout

    async def of_group(self, group: int) -> Rollout | None:
        """One group, where it is kept."""
        step = await run(self._redis.hget(self._index, str(group)))
        place: Any = None if step is None else f"{whole_number(step, f'{self._index} {group}')}-{group}"
        found = await run(self._redis.xrange(self._stream, min=place, max=place)) if place else []
        return _decoded(found[0][1].get(b"data", b""), self._where(found[0][0])) if found else None

    def _where(self, place: bytes) -> str:
        return f"{self._stream} {place.decode()}"


def _decoded(data: bytes, where: str) -> Rollout:
    """Raises `Damaged`."""
    try:
        rollout = _decoder.decode(data)
    except UNREADABLE as error:
        raise damaged(where, f"not a kept group: {error}") from error
    if rollout.wire_version != WIRE_VERSION:
        raise damaged(where, f"its wire version is {rollout.wire_version}, and this side's {WIRE_VERSION}")
    if len(rollout.prompt_ids) % I32.itemsize or not all(map(_is_whole, rollout.completions)):
        raise damaged(where, "its arrays are not of one length, or hold what they cannot")
    return rollout


def _is_whole(kept: RecordedCompletion) -> bool:
    """Whether each array has one element a token, and each part is one."""
    arrays = (kept.token_ids, kept.versions, kept.logprobs, kept.importance)
    size = len(kept.parts)
    return all(len(packed) == size * I32.itemsize for packed in arrays) and max(kept.parts, default=0) <= max(TokenRole)
