"""The wire format of a *group*: one prompt with its sampled completions, the unit of work of the pipeline.

Arrays travel as packed little-endian bytes, never as lists of numbers, inside one versioned msgpack message:

    message  = msgpack [WIRE_VERSION, group_id, attempt, row, admitted_version, prompt, completions, greedy, seconds, …]
    array    = bytes, dtype fixed by the field (table below)

    field            shape  dtype  unit / meaning                                        owner
    prompt_ids       [P]    <i4    token ids of the prompt, chat template applied        rollout worker
    token_ids        [T]    <i4    tokens after the prompt, in order                     engine
    logprobs         [T]    <f4    natural log, of the distribution sampled from;        engine
                                   NaN where versions is -1
    versions         [T]    <i4    policy version that sampled the token, or scored it   engine
                                   in a reference answer; -1 if none
    roles            [T]    u1     `Role`                                                rollout worker
    loss_weights     [T]    <f4    weight of the token in the loss; 0 leaves it out      rollout worker
    likelihood              list   `Likelihood`: how the reward follows from the         grader
                                   REFERENCE tokens' log-probabilities

What `None` means: `Completion.reward is None` – the reward was not applicable to this completion (it did not fail: a
failed reward ends the group as `reward_failed`); `Completion.likelihood is None` – the reward does not depend on a
reference answer's likelihood; `Group.greedy is None` – the algorithm uses no greedy completion.

Worked example: the prompt "2+2=" answered "4</s>", its first token sampled by version 6 and its second by version 7,
has token_ids [19, 2], versions [6, 7], roles [COMPLETION, COMPLETION], loss_weights [1, 1]. A learner about to update
version 8 sees the ages [2, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import WireError
from .likelihood import Likelihood

WIRE_VERSION = 1
NO_VERSION = -1
"""In `versions`: the policy neither sampled nor scored this token."""

I32 = np.dtype("<i4")
F32 = np.dtype("<f4")
U8 = np.dtype("u1")


class Role(IntEnum):
    """The origin of a token."""

    PROMPT = 0
    ENVIRONMENT = 1
    COMPLETION = 2
    REFERENCE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One trajectory after its prompt: T tokens. Raises `WireError` unless all arrays have length T."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    roles: npt.NDArray[np.uint8]
    loss_weights: npt.NDArray[np.float32]
    finish_reason: str
    """`stop` (the model ended it) or `length` (max_tokens cut it off)."""
    reward: float | None = None
    components: dict[str, float] = field(default_factory=dict)
    """The components of the reward, by name; for display, the learner uses `reward`."""
    notes: dict[str, str] = field(default_factory=dict)
    """Texts that the reward returned, by name; for display."""
    likelihood: Likelihood | None = None

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.token_ids, self.logprobs, self.versions, self.roles, self.loss_weights)}
        if len(lengths) != 1:
            raise WireError(f"a completion's arrays must have one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def sampled(self) -> npt.NDArray[np.bool_]:
        """[T], True where the policy sampled the token."""
        return (self.versions != NO_VERSION) & (self.roles != Role.REFERENCE)

    @property
    def answer(self) -> npt.NDArray[np.bool_]:
        """[T], True where the token belongs to the reference answer."""
        return self.roles == Role.REFERENCE

    @property
    def trainable(self) -> npt.NDArray[np.bool_]:
        """[T], True where the token contributes to the gradient unless it is too old."""
        by_the_policy = (self.roles == Role.COMPLETION) | self.answer
        return by_the_policy & (self.versions != NO_VERSION) & (self.loss_weights > 0)


def sampled_completion(
    token_ids: npt.NDArray[np.integer[Any]],
    logprobs: npt.NDArray[np.floating[Any]],
    versions: npt.NDArray[np.integer[Any]],
    finish_reason: str,
    reward: float | None = None,
    components: dict[str, float] | None = None,
) -> Completion:
    """A single-turn completion: every token sampled, every loss weight 1."""
    size = len(token_ids)
    return Completion(
        token_ids=token_ids.astype(I32),
        logprobs=logprobs.astype(F32),
        versions=versions.astype(I32),
        roles=np.full(size, Role.COMPLETION, U8),
        loss_weights=np.ones(size, F32),
        finish_reason=finish_reason,
        reward=reward,
        components=components or {},
    )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt with its completions, and how they were made."""

    group_id: int
    """The ledger's admission number: unique in the job, in admission order."""
    attempt: int
    """1 for the first lease of this group, 2 after one reissue, …"""
    row: int
    """Row of the training file, 0 for the first."""
    admitted_version: int
    """The policy version when the group was admitted; no token of it is older."""
    prompt_ids: npt.NDArray[np.int32]
    completions: tuple[Completion, ...]
    greedy: Completion | None = None
    generation_seconds: float = 0.0
    reward_seconds: float = 0.0

    @property
    def oldest_version(self) -> int:
        """The smallest version that sampled or scored a token of a completion (`admitted_version` if none did)."""
        every = np.concatenate([np.empty(0, I32), *(c.versions for c in self.completions)])
        known = every[every != NO_VERSION]
        return int(known.min()) if known.size else self.admitted_version

    @property
    def trainable_by_version(self) -> dict[int, int]:
        """Number of `trainable` tokens of the completions with a reward, by the version that sampled or scored them.

        Empty if there is a greedy completion without a reward, because then there is no baseline.
        """
        if self.greedy is not None and self.greedy.reward is None:
            return {}
        of_each = (c.versions[c.trainable] for c in self.completions if c.reward is not None)
        versions, tokens = np.unique(np.concatenate([np.empty(0, I32), *of_each]), return_counts=True)
        return dict(zip(versions.tolist(), tokens.tolist(), strict=True))

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that the policy sampled, over all completions."""
        return sum(int(c.sampled.sum()) for c in self.completions)


class _CompletionWire(msgspec.Struct, array_like=True, frozen=True):
    token_ids: bytes
    logprobs: bytes
    versions: bytes
    roles: bytes
    loss_weights: bytes
    finish_reason: str
    reward: float | None
    components: dict[str, float]
    notes: dict[str, str] = {}
    likelihood: Likelihood | None = None


class _GroupWire(msgspec.Struct, array_like=True, frozen=True):
    wire_version: int
    group_id: int
    attempt: int
    row: int
    admitted_version: int
    prompt_ids: bytes
    completions: list[_CompletionWire]
    greedy: _CompletionWire | None
    generation_seconds: float
    reward_seconds: float


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_GroupWire)


def encode(group: Group) -> bytes:
    """The group as one self-contained message."""
    return _encoder.encode(
        _GroupWire(
            wire_version=WIRE_VERSION,
            group_id=group.group_id,
            attempt=group.attempt,
            row=group.row,
            admitted_version=group.admitted_version,
            prompt_ids=_pack(group.prompt_ids, I32),
            completions=[_to_wire(c) for c in group.completions],
            greedy=None if group.greedy is None else _to_wire(group.greedy),
            generation_seconds=group.generation_seconds,
            reward_seconds=group.reward_seconds,
        )
    )


def decode(message: bytes) -> Group:
    """The group in `message`; arrays are read-only views of it. Raises `WireError` for anything else."""
    try:
        wire = _decoder.decode(message)
        if wire.wire_version != WIRE_VERSION:
            raise WireError(f"wire version {wire.wire_version} is not {WIRE_VERSION}: upgrade the older side")
        return Group(
            group_id=wire.group_id,
            attempt=wire.attempt,
            row=wire.row,
            admitted_version=wire.admitted_version,
            prompt_ids=np.frombuffer(wire.prompt_ids, I32),
            completions=tuple(_from_wire(c) for c in wire.completions),
            greedy=None if wire.greedy is None else _from_wire(wire.greedy),
            generation_seconds=wire.generation_seconds,
            reward_seconds=wire.reward_seconds,
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"not a trajectory group: {error}") from error


def _pack(array: npt.NDArray[np.generic], dtype: np.dtype[np.generic]) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _to_wire(c: Completion) -> _CompletionWire:
    return _CompletionWire(
        token_ids=_pack(c.token_ids, I32),
        logprobs=_pack(c.logprobs, F32),
        versions=_pack(c.versions, I32),
        roles=_pack(c.roles, U8),
        loss_weights=_pack(c.loss_weights, F32),
        finish_reason=c.finish_reason,
        reward=c.reward,
        components=c.components,
        notes=c.notes,
        likelihood=c.likelihood,
    )


def _from_wire(c: _CompletionWire) -> Completion:
    return Completion(
        token_ids=np.frombuffer(c.token_ids, I32),
        logprobs=np.frombuffer(c.logprobs, F32),
        versions=np.frombuffer(c.versions, I32),
        roles=np.frombuffer(c.roles, U8),
        loss_weights=np.frombuffer(c.loss_weights, F32),
        finish_reason=c.finish_reason,
        reward=c.reward,
        components=c.components,
        notes=c.notes,
        likelihood=c.likelihood,
    )
