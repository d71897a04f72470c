"""The names of all Redis keys. No other module spells one.

The braces around the job id are a Redis Cluster hash tag: all keys of one job live in one slot (so one Lua script may
touch them together), and jobs spread over a cluster.

    headrace:jobs                 zset    job id → creation time
    headrace:files                hash    file id → JSON
    headrace:gateway              string  the gateway that reconciles controllers (expires)
    headrace:written_through      string  the client that makes Redis sync its file (a lock, expires)
    headrace:chats                string  the gateway that starts a chat model (a lock, expires)
    headrace:requests:<digest>    string  job id answered to an identical or same-keyed POST (expires)
    headrace:requests:<job>:lease string  exists while a gateway creates that job for a POST (expires)
    headrace:{access}:keys        hash    SHA-256 of an API key → JSON
    headrace:{access}:used        hash    SHA-256 of an API key → when it was last used, to the minute
    headrace:{access}:session:<digest>  string  SHA-256 of the API key that a browser logged in with (expires)
    headrace:{access}:paid:<who>  string  rate limit: until when the requests of a key or address are used up (expires)
    headrace:{access}:audit:<of>  stream  audit log: changes, refusals, unauthenticated (bounded)
    headrace:{access}:audit:begun hash    request id → JSON of a change that has begun and is not yet in the log
    headrace:{job}:job            hash    document (JSON), owner, status, …
    headrace:{job}:history:<kind> stream  events, steps, evaluations, updates, heartbeats: entry ids are <number>-0
    headrace:{job}:thinned        stream  exists while a script runs: the history that replaces one that grew too large
    headrace:{job}:summary        hash    number of entries so far; the newest entry of each source; sparkline (JSON);
                                          for each kind its bytes, and how many entries were removed
    headrace:{job}:marks          zset    number of a step's entry → step
    headrace:{job}:checkpoints    hash    step → JSON
    headrace:{job}:workers        hash    worker → JSON heartbeat
    headrace:{job}:drains         hash    rollout worker that gets no more leases → JSON: since when, until when
    headrace:{job}:changes        list    changes of settings while the job runs (JSON), oldest first
    headrace:{job}:published      list    the last published policy versions (JSON), newest first
    headrace:{job}:mending        hash    recovery action of the watchdog, or restarts of a worker → count
    headrace:{job}:controller     string  pid of the job's controller; its heartbeat (expires)
    headrace:{job}:rewards        hash    worker and its start → JSON of the reward's figures there
    headrace:{job}:ledger         hash    counts, policy version, limits, terms
    headrace:{job}:leases         zset    group → lease expiry
    headrace:{job}:queued         zset    group → group (admission order)
    headrace:{job}:claimed        zset    group → group
    headrace:{job}:failed         list    the newest groups that failed; the records of older ones are deleted
    headrace:{job}:ended          list    the newest groups that ended otherwise (trained ones once covered); likewise
    headrace:{job}:groups         stream  encoded trajectory groups, until a checkpoint covers them
    headrace:{job}:steps          hash    policy version → JSON of the step that updated it; of covered ones the newest
    headrace:{job}:rollouts       stream  recorded groups of settled steps: entry ids are <step>-<group>
    headrace:{job}:rollouts_index hash    group → step; bytes of all records, and the last step and group recorded
    headrace:{job}:signals        stream  short: wakes those who wait for a group, a version, the end
    headrace:{job}:orders:<start> stream  commands of the learner's rank 0 to the other ranks of one start (expires)
    headrace:{job}:group:<n>      hash    one group: state, lease token, attempt, versions, history
"""

from __future__ import annotations

from dataclasses import dataclass

JOBS = "headrace:jobs"
FILES = "headrace:files"
GATEWAY = "headrace:gateway"
CHATS = "headrace:chats"
WRITTEN_THROUGH = "headrace:written_through"


def request(digest: str) -> str:
    """The stored answer to a POST that was carried out."""
    return f"headrace:requests:{digest}"


def request_lease(job_id: str) -> str:
    """Exists while a gateway creates the job."""
    return f"headrace:requests:{job_id}:lease"


_ACCESS = "headrace:{access}:"
API_KEYS = _ACCESS + "keys"
API_KEYS_USED = _ACCESS + "used"


def session(digest: str) -> str:
    """The API key that a browser's session stands for."""
    return f"{_ACCESS}session:{digest}"


def audit(of: str) -> str:
    """The audit log `changes`, `refusals` or `unauthenticated`; or the hash `begun` of changes in progress."""
    return f"{_ACCESS}audit:{of}"


ADMISSION_SCRIPT = [API_KEYS, API_KEYS_USED, session(""), _ACCESS + "paid:"]
"""KEYS of the script that authenticates a request and applies its rate limit."""


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job."""

    job_id: str

    @property
    def prefix(self) -> str:
        """The prefix of every key of the job."""
        return f"headrace:{{{self.job_id}}}:"

    @property
    def job(self) -> str:
        return self.prefix + "job"

    def history(self, kind: str) -> str:
        return f"{self.prefix}history:{kind}"

    @property
    def thinned(self) -> str:
        return self.prefix + "thinned"

    @property
    def summary(self) -> str:
        return self.prefix + "summary"

    @property
    def marks(self) -> str:
        return self.prefix + "marks"

    @property
    def checkpoints(self) -> str:
        return self.prefix + "checkpoints"

    @property
    def workers(self) -> str:
        return self.prefix + "workers"

    @property
    def drains(self) -> str:
        return self.prefix + "drains"

    @property
    def changes(self) -> str:
        return self.prefix + "changes"

    @property
    def published(self) -> str:
        return self.prefix + "published"

    @property
    def mending(self) -> str:
        return self.prefix + "mending"

    @property
    def controller(self) -> str:
        return self.prefix + "controller"

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
    def failed(self) -> str:
        return self.prefix + "failed"

    @property
    def ended(self) -> str:
        return self.prefix + "ended"

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
        """KEYS of every ledger script, in the order of their names in lua/prelude.lua."""
        return [
            self.ledger, self.leases, self.queued, self.claimed, self.groups, self.steps, self.signals, self.group(""),
            self.changes, self.drains, self.job, self.failed, self.ended,
        ]  # fmt: skip
