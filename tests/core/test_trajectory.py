"""The wire format: what goes in comes out, and nothing else is taken for a group."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace_core.errors import WireError
from headrace_core.types.likelihood import Likelihood
from headrace_core.types.staleness import ages
from headrace_core.types.trajectory import (
    NO_VERSION,
    WIRE_VERSION,
    Completion,
    Group,
    Role,
    decode,
    encode,
    sampled_completion,
)

I32 = st.integers(-(2**31), 2**31 - 1)
F32 = st.floats(width=32)
REAL = st.floats(allow_nan=False)


likelihoods = st.builds(
    Likelihood, st.sampled_from(["product", "log", "mean"]), REAL, REAL, REAL, st.floats(allow_nan=False), st.booleans()
)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    size = draw(st.integers(0, 20))

    def array(dtype: str, elements: st.SearchStrategy[float]) -> np.ndarray:
        return draw(arrays.arrays(dtype, size, elements=elements))

    return Completion(
        token_ids=array("<i4", I32),
        logprobs=array("<f4", F32),
        versions=array("<i4", st.integers(-1, 1000)),
        roles=array("u1", st.sampled_from([int(r) for r in Role])),
        loss_weights=array("<f4", F32),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        reward=draw(st.none() | REAL),
        components=draw(st.dictionaries(st.text(max_size=8), REAL, max_size=3)),
        notes=draw(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)),
        likelihood=draw(st.none() | likelihoods),
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    natural = st.integers(0, 2**53)
    return Group(
        group_id=draw(natural),
        attempt=draw(st.integers(1, 9)),
        row=draw(natural),
        admitted_version=draw(natural),
        prompt_ids=draw(arrays.arrays("<i4", st.integers(0, 20), elements=I32)),
        completions=tuple(draw(st.lists(completions(), max_size=4))),
        greedy=draw(st.none() | completions()),
        generation_seconds=draw(REAL),
        reward_seconds=draw(REAL),
    )


def assert_same(a: Completion, b: Completion) -> None:
    for name in ("token_ids", "logprobs", "versions", "roles", "loss_weights"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes()  # bit for bit: NaN included
    assert (a.finish_reason, a.reward, a.components) == (b.finish_reason, b.reward, b.components)
    assert a.notes == b.notes
    assert a.likelihood == b.likelihood


@given(groups())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_decoding_gives_back_what_was_encoded(group: Group) -> None:
    back = decode(encode(group))
    names = ("group_id", "attempt", "row", "admitted_version", "generation_seconds", "reward_seconds")
    assert [getattr(back, n) for n in names] == [getattr(group, n) for n in names]
    assert back.prompt_ids.tobytes() == group.prompt_ids.tobytes()
    assert len(back.completions) == len(group.completions)
    for mine, theirs in zip(back.completions, group.completions, strict=True):
        assert_same(mine, theirs)
    assert (back.greedy is None) == (group.greedy is None)
    if back.greedy is not None and group.greedy is not None:
        assert_same(back.greedy, group.greedy)
    assert back.oldest_version == group.oldest_version


def example() -> Group:
    """The one of the module's docstring."""
    ids, versions = np.array([19, 2], np.int64), np.array([6, 7], np.int64)
    done = sampled_completion(ids, np.array([-0.5, -0.25]), versions, "stop", reward=1.0)
    return Group(0, 1, 0, 6, np.array([17, 10, 17, 28]), (done,))


def test_the_documented_example() -> None:
    done = decode(encode(example())).completions[0]
    assert done.token_ids.tolist() == [19, 2]
    assert done.roles.tolist() == [Role.COMPLETION, Role.COMPLETION]
    assert done.loss_weights.tolist() == [1, 1]
    assert ages(done.versions, 8).tolist() == [2, 1]
    assert example().oldest_version == 6
    assert example().sampled_tokens == 2


def test_tokens_that_the_policy_did_not_sample_have_no_age_and_no_part_in_the_oldest_version() -> None:
    versions = np.array([NO_VERSION, 7, NO_VERSION], np.int32)
    mixed = Completion(
        token_ids=np.zeros(3, np.int32),
        logprobs=np.array([np.nan, -1, np.nan], np.float32),
        versions=versions,
        roles=np.array([Role.ENVIRONMENT, Role.COMPLETION, Role.REFERENCE], np.uint8),
        loss_weights=np.ones(3, np.float32),
        finish_reason="stop",
    )
    group = Group(0, 1, 0, 5, np.zeros(1, np.int32), (mixed,))
    assert (group.oldest_version, group.sampled_tokens) == (7, 1)
    assert Group(0, 1, 0, 5, np.zeros(1, np.int32), ()).oldest_version == 5


def test_tokens_that_the_policy_scored_are_not_sampled_but_have_an_age() -> None:
    scored = sampled_completion(np.arange(3), -np.ones(3), np.array([7, 7, 6]), "stop")
    scored.roles[2] = Role.REFERENCE
    group = Group(0, 1, 0, 5, np.zeros(1, np.int32), (scored,))
    assert scored.sampled.tolist() == [True, True, False]
    assert (group.oldest_version, group.sampled_tokens) == (6, 2)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_other_bytes_are_a_wire_error(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode(noise)


def test_every_cut_of_a_message_is_a_wire_error() -> None:
    message = encode(example())
    for length in range(len(message)):
        with pytest.raises(WireError):
            decode(message[:length])


def test_another_wire_version_is_named() -> None:
    fields = msgspec.msgpack.decode(encode(example()))
    with pytest.raises(WireError, match=f"wire version {WIRE_VERSION + 1} is not {WIRE_VERSION}"):
        decode(msgspec.msgpack.encode([WIRE_VERSION + 1, *fields[1:], "a field of the future"]))


@pytest.mark.parametrize("damage", [b"123", b"12345678"])
def test_arrays_of_a_wrong_length_are_a_wire_error(damage: bytes) -> None:
    fields = msgspec.msgpack.decode(encode(example()))
    fields[6][0][0] = damage + b"1234"  # token_ids: not a multiple of 4 bytes, and one token too many
    with pytest.raises(WireError):
        decode(msgspec.msgpack.encode(fields))


def test_a_completion_with_arrays_of_two_lengths_cannot_be_made() -> None:
    with pytest.raises(WireError, match="one length"):
        sampled_completion(np.zeros(2, np.int32), np.zeros(3, np.float32), np.zeros(2, np.int32), "stop")
