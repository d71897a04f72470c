"""Steps that change nothing are told at the first one and pause a job after some; one that taught is not forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from headrace_controller.idle_steps import IdleSteps, NothingLearned, NothingScored
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.metrics import RewardMetrics, StepMetrics
from headrace_lab.services.jobs import stored_job

JOB = "ftjob-1"
MOST = 3
UNSCORED: dict[str, Any] = {"reward_mean": None, "reward_std": None, "grad_norm": 0.0}
EQUAL: dict[str, Any] = {"reward_mean": 0.25, "grad_norm": 0.0}
TEACHES: dict[str, Any] = {"reward_mean": 0.25, "grad_norm": 0.7}

Steps = Callable[..., Awaitable[None]]


def idle_steps(jobs: JobStore, version: int = 0, **settings: Any) -> IdleSteps:
    chosen = Hyperparameters.model_validate({"n_steps": 20, "max_steps_without_gradient": MOST, **settings})
    return IdleSteps(jobs, JOB, chosen, version)


def step(number: int, **fields: Any) -> StepMetrics:
    zeros = dict.fromkeys(StepMetrics.__struct_fields__, 0)
    fixed = {"step": number, "total_steps": 20, "seconds": {}, "components": {}, "ages": {}, "extra": {}}
    return StepMetrics(**{**zeros, **fixed, "groups": 4, "completions": 8, "tokens": 40, **fields})


@pytest.fixture
async def steps(jobs: JobStore) -> Steps:
    """Record more steps, one of each given."""
    await jobs.create(stored_job())
    done = 0

    async def record(*kinds: dict[str, Any]) -> None:
        nonlocal done
        for kind in kinds:
            done += 1
            await jobs.record(JOB, step(done, **kind))

    return record


async def warnings(jobs: JobStore) -> list[str]:
    return [event.message for _, event in await jobs.events(JOB) if event.level == "warn"]


async def test_the_first_step_without_a_reward_is_told_with_what_became_of_its_completions(
    jobs: JobStore, steps: Steps
) -> None:
    counted = RewardMetrics(worker="rollout-0", started=1.0, time=2.0, completions=24, not_applicable=23)
    await jobs.record_reward(JOB, counted)
    idle = idle_steps(jobs)
    await idle.check()
    await steps(UNSCORED)
    await idle.check()
    await steps(UNSCORED)
    await idle.check()
    (told,) = await warnings(jobs)
    assert told.startswith(
        "Step 1 changed nothing: none of its 8 completions has a reward: of 24 so far the grader had "
    )
    assert "no opinion of 23 (a function returned None), and failed for 0" in told
    assert "headrace rewards check" in told


async def test_a_job_that_nobody_scores_pauses_and_says_why(jobs: JobStore, steps: Steps) -> None:
    idle = idle_steps(jobs)
    await steps(UNSCORED, UNSCORED)
    await idle.check()
    await steps(UNSCORED)
    with pytest.raises(
        NothingLearned, match=r"^3 steps in a row, up to step 3, .*no.* has a reward.* allows no more"
    ) as e:
        await idle.check()
    assert (e.value.code, e.value.who) == ("nothing_learned", "job")


async def test_equal_rewards_from_the_first_step_on_pause_it_too(jobs: JobStore, steps: Steps) -> None:
    idle = idle_steps(jobs)
    await steps(*[EQUAL] * MOST)
    with pytest.raises(NothingLearned, match=r"in each of its 4 groups all rewards are equal \(their mean is 0\.25\)"):
        await idle.check()


async def test_equal_rewards_of_a_policy_that_has_learned_are_told_and_pause_nothing(
    jobs: JobStore, steps: Steps
) -> None:
    idle = idle_steps(jobs)
    await steps(EQUAL, EQUAL, TEACHES, *[EQUAL] * 50)
    await idle.check()
    assert [told.partition(":")[0] for told in await warnings(jobs)] == [
        "Step 1 changed nothing",
        "Step 4 changed nothing",
    ]
    await steps(*[UNSCORED] * MOST)
    with pytest.raises(NothingLearned, match="has a reward"):
        await idle.check()


async def test_steps_in_a_row_are_counted(jobs: JobStore, steps: Steps) -> None:
    idle = idle_steps(jobs)
    await steps(TEACHES, *[UNSCORED, UNSCORED, TEACHES] * 5)
    await idle.check()
    await idle.end()


@pytest.mark.parametrize("settings", [{"max_steps_without_gradient": 0}, {"max_steps_without_gradient": 50}])
async def test_it_is_the_users_number_and_0_is_never(jobs: JobStore, steps: Steps, settings: dict[str, int]) -> None:
    idle = idle_steps(jobs, **settings)
    await steps(*[UNSCORED] * 20)
    await idle.check()
    assert len(await warnings(jobs)) == 1


async def test_a_resume_counts_anew_and_remembers_what_taught(jobs: JobStore, steps: Steps) -> None:
    await steps(TEACHES, *[UNSCORED] * 4)
    resumed = idle_steps(jobs, version=5)
    await resumed.check()
    await steps(UNSCORED, UNSCORED)
    await resumed.check()
    after_a_crash = idle_steps(jobs, version=7)
    await steps(*[EQUAL] * 40)
    await after_a_crash.check()
    assert len(await warnings(jobs)) == 2


async def test_a_critic_that_warms_up_and_tokens_that_are_too_old(jobs: JobStore, steps: Steps) -> None:
    idle = idle_steps(jobs, algorithm="ppo", critic_warmup_steps=4, batch_size=4)
    await steps(*[EQUAL] * 4)
    await idle.check()
    assert await warnings(jobs) == []
    await steps(EQUAL | {"tokens": 0, "masked_tokens": 40})
    await idle.check()
    assert "all of its 40 tokens are older than max_staleness" in (await warnings(jobs))[0]


async def test_a_whole_job_without_a_reward_does_not_succeed(jobs: JobStore, steps: Steps) -> None:
    """Also one that is shorter than the number of steps that would pause it."""
    await steps(UNSCORED, UNSCORED)
    with pytest.raises(NothingScored, match=r"^no completion of the job's 20 steps was given a reward") as e:
        await idle_steps(jobs, version=2).end()
    assert (e.value.code, e.value.param) == ("nothing_scored", "grader")
    await steps(EQUAL)
    await idle_steps(jobs, version=2).end()


async def test_a_damaged_measurement_says_nothing(jobs: JobStore, redis: Redis, steps: Steps) -> None:
    idle = idle_steps(jobs)
    await steps(UNSCORED, UNSCORED)
    await redis.xadd(JobKeys(JOB).history("step"), {"source": "step", "data": b"{broken"}, id="900-0")
    await idle.check()
    assert len(await warnings(jobs)) == 1
