"""The observer, which checks everything that happens to a job against the invariants of ledger and learner.

after each call that may have changed something, in the order in which Redis executed them:

  counts   admitted = sum of the states; the set of each live state has as many members; the pacing window and the job's
           total are respected; the version never decreases, and increases with settlements only; setting changes stay
  commit   is under the newest lease of its group, and happens once
  settle   its groups are claimed, and none was trained before; its ages are those of the groups' tokens, and within the
           recorded bound; the weights it names exist, and are those that follow from the order of the steps
  covered  two complete checkpoints (or the trained model, at the end) cover the groups that are deleted
  stream   has exactly the groups that are queued, claimed, or trained and not covered
  append   an evaluation is of the version that it names, which is newer than those recorded before

at the end: every group is in one terminal state, the model follows from the order of the steps, no process is left, and
every evaluation that was due is recorded, or recorded as left out
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace_core.ledger.counts import LIVE, STATES
from headrace_core.types.job import ENDED
from headrace_core.types.trajectory import NO_VERSION, Group, decode

if TYPE_CHECKING:
    from headrace_simulation.world import Call, World

_FIELDS = ("admitted", *STATES, "version", "covered", "term", "largest_age", "weights", "closed")
LEDGER_DUMP = f"""
return {{
  redis.call('HMGET', KEYS[1], {", ".join(f"'{field}'" for field in _FIELDS)}),
  redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]), redis.call('XLEN', KEYS[5]),
  redis.call('HMGET', KEYS[11], 'status', 'at_rest'), redis.call('XREVRANGE', KEYS[7], '+', '-', 'COUNT', 1),
  redis.call('LRANGE', KEYS[9], 0, -1)
}}
"""
_SIZES = ("in_leases", "in_queued", "in_claimed", "kept")


class Violation(AssertionError):
    """An invariant is violated."""


@dataclass
class Record:
    """What was observed so far. A power loss resets it together with Redis."""

    newest_attempt: dict[int, int] = field(default_factory=dict)
    committed: dict[int, bytes] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    """Group → the version that it updated."""
    models: list[str] = field(default_factory=lambda: [chain("", 0, [], 0)])
    """By version: the state that follows from training on the settled steps in order."""
    evaluated: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The recorded evaluations, by the numbers of their entries."""
    forgotten_from: int = 0
    version: int = 0
    changes: list[bytes] = field(default_factory=list)


def chain(before: str, version: int, groups: Sequence[Group], max_staleness: int) -> str:
    """The simulated training: a hash of the state `before` and all data that a step of policy `version` reads."""
    seen = hashlib.sha256(f"{before} {version} {max_staleness}".encode())
    for group in groups:
        seen.update(f"{group.group_id} {group.attempt} {group.row}".encode())
        for completion in group.completions:
            seen.update(completion.versions.tobytes())
            seen.update(completion.token_ids.tobytes())
    return seen.hexdigest()[:16]


def age_counts(groups: Sequence[Group], version: int, max_staleness: int) -> tuple[Counter[int], int]:
    """(number of contributing tokens by age, number of masked tokens), counted token by token."""
    ages = Counter(version - v for g in groups for c in g.completions for v in c.versions.tolist() if v != NO_VERSION)
    young = Counter({age: n for age, n in ages.items() if age <= max_staleness})
    return young, ages.total() - young.total()


class Observer:
    """The observer of one world. `status` is the job's status."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.record = Record()
        self.status = ""
        self.closed = self.at_rest = False
        self.signal = b""
        """Id of the newest entry of the signals."""
        self.weights_lost = False
        """Whether weights were lost since the last learner was ready, which publishes them again."""
        self.counts: dict[str, int] = {}
        """The ledger's counts after the last call."""
        self._checked: list[Any] = []
        """The last answer to `LEDGER_DUMP` that passed the checks: an equal one need not be checked again."""
        self.events = 0

    def snapshot(self) -> tuple[Record, str, bool, bool]:
        """The observer's state, for a power loss."""
        return deepcopy(self.record), self.status, self.closed, self.at_rest

    def restore(self, snapshot: tuple[Record, str, bool, bool]) -> None:
        """Return to the state of `snapshot`, as Redis does."""
        self.record, self.status, self.closed, self.at_rest = deepcopy(snapshot[0]), *snapshot[1:]
        self._checked = []

    # ── after each call ──────────────────────────────────────────────────────────────────────────────────────────────

    def saw(self, call: Call, raw: list[Any], counts: list[Any]) -> None:
        """Check a call and its answers `raw`. `counts`: the answer to `LEDGER_DUMP`. Raises `Violation`."""
        self.events += 1
        if call.name == "append" and not isinstance(raw[0], Exception):
            self._appended(call.commands[0], int(raw[0]))
        check = getattr(self, f"_{call.name}", None)
        if check is None and counts == self._checked:
            return
        ledger, *sizes, (status, at_rest), newest, self.record.changes = counts
        *numbers, weights, closed = ledger
        self.status, self.at_rest = (status or b"").decode(), at_rest is not None
        self.signal = newest[0][0] if newest else b""
        if check is not None and not isinstance(raw[0], Exception):
            command = call.commands[0]
            check(command[4 + int(command[2]) :], raw[0], (weights or b"").decode())
        figures = {name: int(n or 0) for name, n in zip(_FIELDS, numbers, strict=False)}
        self._check(figures | dict(zip(_SIZES, sizes, strict=True)), closed is not None)
        self._checked = counts

    def _check(self, counts: dict[str, int], closed: bool) -> None:
        states = {s: counts[s] for s in STATES}
        expect(counts["admitted"] == sum(states.values()), "the ledger does not balance: {}", counts)
        for state in LIVE:
            expect(
                counts[f"in_{state}" if state != "leased" else "in_leases"] == states[state], "{}: {}", state, counts
            )
        job, live = self._world.plan.job, sum(states[s] for s in LIVE)
        widest = max([job.max_staleness, *self._bounds()])
        expect(live <= (widest + 1) * job.batch_size, "beyond the pacing window: {}", counts)
        expect(states["trained"] + live <= job.steps * job.batch_size, "more groups than the job needs: {}", counts)
        expect(counts["version"] == self.record.version, "version {} became {}", self.record.version, counts["version"])
        expect(not self.closed or closed, "a closed ledger was opened again")
        self.closed, self.counts = closed, counts
        kept = sum(1 for version in self.record.trained.values() if version >= self.record.forgotten_from)
        wanted = states["queued"] + states["claimed"] + kept
        forgotten = closed and self.status in ENDED and (self.at_rest or counts["kept"] == 0)
        wanted = 0 if forgotten else wanted
        expect(counts["kept"] == wanted, "the stream has {} groups, {} are needed: {}", counts["kept"], wanted, counts)

    def _bounds(self) -> list[int]:
        changes = [json.loads(line) for line in self.record.changes]
        return [c["after"] for c in changes if c["name"] == "max_staleness"]

    def bound_at(self, version: int) -> int:
        """max_staleness of the step that updates `version`, by the recorded changes."""
        bound = self._world.plan.job.max_staleness
        for line in self.record.changes:
            change = json.loads(line)
            if change["name"] == "max_staleness" and change["from_version"] <= version:
                bound = change["after"]
        return bound

    def _admit(self, given: Sequence[Any], raw: list[Any], weights: str) -> None:
        for group, _, attempt, version in raw[2:]:
            expect(attempt == self.record.newest_attempt.get(group, 0) + 1, f"group {group} skips an attempt")
            expect(version == self.record.version, f"group {group} is leased at version {version}")
            expect(group not in self.record.committed, f"group {group} is generated again after it was handed in")
            self.record.newest_attempt[group] = attempt

    def _commit(self, given: Sequence[Any], raw: bytes, weights: str) -> None:
        group, message = int(given[0]), bytes(given[4])
        if raw != b"queued" or self.record.committed.get(group) == message:
            return
        expect(group not in self.record.committed, f"group {group} was handed in twice")
        attempt = decode(message).attempt
        newest = self.record.newest_attempt[group]
        expect(attempt == newest, f"group {group} was taken of attempt {attempt}, its newest lease is attempt {newest}")
        self.record.committed[group] = message

    def _settle(self, given: Sequence[Any], raw: bytes, weights: str) -> None:
        version, groups = int(given[1]), [int(g) for g in given[6:]]
        if raw != b"settled" or (version < self.record.version and self._settled_so(version, groups)):
            return
        expect(version == self.record.version, f"a step of version {version} was settled at {self.record.version}")
        for group in groups:
            expect(group not in self.record.trained, f"group {group} was trained twice")
            expect(group in self.record.committed, f"group {group} was trained, but nobody handed it in")
            self.record.trained[group] = version
        bound = self.bound_at(version)
        whole = [decode(self.record.committed[group]) for group in groups]
        young, masked = age_counts(whole, version, bound)
        step = json.loads(given[5])
        expect({int(a): n for a, n in step["ages"].items()} == dict(young), f"ages {step['ages']}, found {young}")
        expect(step["masked_tokens"] == masked, f"{step['masked_tokens']} masked, found {masked}")
        self.record.models.append(chain(self.record.models[version], version, whole, bound))
        self.record.version += 1
        self.weights_are_right(weights, self.record.version)

    def _settled_so(self, version: int, groups: list[int]) -> bool:
        return sorted(g for g, v in self.record.trained.items() if v == version) == sorted(groups)

    def weights_are_right(self, name: str, version: int) -> None:
        """Check that the weights `name` exist, and follow from the order of the steps."""
        if self.weights_lost:
            return
        file = self._world.weights / name / "w"
        expect(file.exists(), f"the ledger names weights {name}, which are not published")
        found, wanted = file.read_text(), self.record.models[version]
        expect(found == wanted, f"weights {name} are {found}; the ledger's order makes {wanted}")

    def _covered(self, given: Sequence[Any], raw: int, weights: str) -> None:
        version = min(int(given[0]), self.record.version)
        if version <= self.record.forgotten_from:
            return
        self.record.forgotten_from = version
        holding = [v for v in self._world.complete_checkpoints() if v >= version]
        if version > 0:
            expect(
                len(holding) >= 2,
                f"groups before version {version} are forgotten, but only checkpoints {holding} hold them",
            )

    def _claim(self, given: Sequence[Any], raw: Any, weights: str) -> None:
        if isinstance(raw, list):
            for message, group in zip(raw, given[4:], strict=False):
                expect(bytes(message) == self.record.committed.get(int(group)), f"claim of group {group}: other bytes")

    def _appended(self, command: Sequence[Any], number: int) -> None:
        source, data = command[3 + int(command[2]) :][:2]
        if source == "evaluation":
            self._evaluation(number, json.loads(data))

    def _evaluation(self, number: int, measured: dict[str, Any]) -> None:
        """Check an evaluation, recorded as entry `number` of the history. A completion's reward is its version."""
        step, record = measured["step"], self.record
        if number in record.evaluated:  # the call was repeated, or another controller's came first
            expect(record.evaluated[number]["step"] == step, "entry {} is of another step than {}", number, measured)
            return
        before = max((m["step"] for m in record.evaluated.values()), default=-1)
        expect(before < step <= record.version, "an evaluation after that of step {}: {}", before, measured)
        if measured["generation_failed"] < measured["samples"]:
            expect(measured["reward_mean"] == step, "an evaluation is not of the version that it names: {}", measured)
        record.evaluated[number] = measured

    def _all_evaluated(self) -> None:
        """Check that each evaluation that was due in a job that succeeded is recorded, or recorded as left out."""
        job, measured = self._world.plan.job, list(self.record.evaluated.values())
        if job.eval_samples is None:
            return
        due = sorted({*range(0, job.steps, job.eval_interval), job.steps})
        made = {max(d for d in due if d <= m["step"]) for m in measured}
        left_out = [step for m in measured for step in m["left_out"]]
        expect(sorted([*made, *left_out]) == due, "of evaluations {} were due: {}", due, measured)
        expect(job.steps in made, "the last version was not evaluated: {}", measured)

    def ended_as(self) -> list[str]:
        """The job's status."""
        return [self.status]

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def replayed(self, version: int, model: str) -> None:
        """Check the state of a learner that has become ready at `version`."""
        self.weights_lost = False
        wanted = self.record.models[version] if version < len(self.record.models) else "unknown"
        expect(
            model == wanted, f"a new learner came to {model} at version {version}; the ledger's order makes {wanted}"
        )

    def ended(self) -> None:
        """Check the end: the job has ended, and nothing happens any more."""
        states = {s: self.counts[s] for s in STATES}
        expect(self.closed, f"the job is {self.status}, but its ledger is open")
        expect(sum(states[s] for s in LIVE) == 0, f"groups are under way after the end: {states}")
        if self.status == "succeeded":
            job = self._world.plan.job
            expect(states["trained"] == job.steps * job.batch_size, f"{states['trained']} groups trained")
            expect(self.record.version == job.steps, f"ended at version {self.record.version}")
            self._all_evaluated()
            model = (self._world.output / "model" / "w").read_text()
            expect(model == self.record.models[-1], f"the model is {model}, not {self.record.models[-1]}")
        else:
            expect(self.status == "cancelled", f"the job ended as {self.status}: {self._world.failure}")


def expect(holds: bool, otherwise: str, *found: object) -> None:
    """Raises `Violation` with the text `otherwise` unless `holds`. `found` fills the text's placeholders, so that
    values are formatted only if needed."""
    if not holds:
        raise Violation(otherwise.format(*found) if found else otherwise)
