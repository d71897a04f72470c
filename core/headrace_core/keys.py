"""Every Redis key, spelled here and nowhere else.

The braces around the job id are a Redis Cluster hash tag: all keys of one job live in one slot (so one Lua script may
touch them together), and jobs spread over a cluster.

    headrace:jobs                 zset    job id → creation time
    headrace:files                hash    file id → JSON
    headrace:gateway              string  who reconciles (expires)
    headrace:requests:<digest>    string  job id answered to an identical or same-keyed POST (expires)
    headrace:{job}:job            hash    document (JSON), status, …
    headrace:{job}:events         stream  what the user is told
    headrace:{job}:metrics        stream  one entry a step, an evaluation, a worker sample
    headrace:{job}:checkpoints    hash    step → JSON
    headrace:{job}:workers        hash    worker → JSON heartbeat
    headrace:{job}:rewards        hash    worker and its start → JSON of what the reward did there
    headrace:{job}:ledger         hash    counts, policy version, limits, terms
    headrace:{job}:leases         zset    group → lease expiry
    headrace:{job}:queued         zset    group → group (admission order)
    headrace:{job}:claimed        zset    group → group
    headrace:{job}:groups         stream  encoded trajectory groups, kept until a checkpoint covers them
    headrace:{job}:steps          hash    policy version → JSON of the step that updated it
    headrace:{job}:rollouts       stream  groups that steps consumed, kept for reading: entry ids are <step>-<group>
    headrace:{job}:rollouts_index hash    group → step; how many bytes are kept, and what came last
    headrace:{job}:signals        stream  short: wakes whoever waits for a group, a version, the end
    headrace:{job}:orders:<start> stream  what rank 0 of the learner tells the other ranks of one start (expires)
    headrace:{job}:group:<n>      hash    one group: state, lease token, attempt, versions, history
"""

from __future__ import annotations

from dataclasses import dataclass

JOBS = "headrace:jobs"
FILES = "headrace:files"
GATEWAY = "headrace:gateway"


def request(digest: str) -> str:
    """The answer to a POST already carried out."""
    return f"headrace:requests:{digest}"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job."""

    job_id: str

    @property
    def prefix(self) -> str:
        """What every key of the job begins with."""
        return f"headrace:{{{self.job_id}}}:"

    @property
    def job(self) -> str:
        return self.prefix + "job"

    @property
    def events(self) -> str:
        return self.prefix + "events"

    @property
    def metrics(self) -> str:
        return self.prefix + "metrics"

    @property
    def checkpoints(self) -> str:
        return self.prefix + "checkpoints"

    @property
    def workers(self) -> str:
        return self.prefix + "workers"

    @property
    def rewards(self) -> str:
        return self.prefix + "rewards"

    @property
    def ledger(self) -> str:
        return self.prefix + "ledger"

    @property
    def leases(self) -> str:
        return self.prefix + "leases"

    @property
    def queued(self) -> str:
        return self.prefix + "queued"

    @property
    def claimed(self) -> str:
        return self.prefix + "claimed"

    @property
    def groups(self) -> str:
        return self.prefix + "groups"

    @property
    def steps(self) -> str:
        return self.prefix + "steps"

    @property
    def rollouts(self) -> str:
        return self.prefix + "rollouts"

    @property
    def rollouts_index(self) -> str:
        return self.prefix + "rollouts_index"

    @property
    def signals(self) -> str:
        return self.prefix + "signals"

    def orders(self, start: str) -> str:
        return f"{self.prefix}orders:{start}"

    def group(self, group_id: int | str) -> str:
        return f"{self.prefix}group:{group_id}"

    @property
    def ledger_scripts(self) -> list[str]:
        """KEYS of every ledger script, in the order that lua/prelude.lua names them."""
        return [
            self.ledger, self.leases, self.queued, self.claimed, self.groups, self.steps, self.signals, self.group(""),
        ]  # fmt: skip
