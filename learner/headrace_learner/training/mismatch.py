"""Checks that engine and learner compute the same model, by their log-probabilities of the same tokens at equal
weights.

A token's behaviour log-probability comes from the engine, its first log-probability in a step from the learner. For
completions that the policy being updated sampled completely, both use the same weights and should differ by rounding
only. If they differ more, all ratios and gradients are of another policy than the one that samples.

    KL(engine ‖ learner) ≈ mean of exp(−d) − 1 + d, d = log π_engine − log π_learner      (k3, `kl`)

It is 1e-9 to 1e-6 with float32 on both sides, 1e-4 to 1e-3 with bfloat16. A real mismatch (another formula, other
weights, another temperature) is far above. KV caches of older weights, which `update_mode` keep_kv retains on purpose,
would show, too: completions that used them are excluded (`token_selection`). A step of only such completions has no
figure.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_core.jobs.job_store import JobStore

from .step_metrics import MISMATCH

WARN_FLOAT32 = 0.01
"""Share of the limit above which the job gets a warning."""
WARN_BFLOAT16 = 0.1


class Mismatch(InvalidRequest):
    """Engine and learner do not compute the same model."""

    code = "engine_mismatch"


class MismatchWatch:
    """Watches one learner's mismatch: warns once when it is unusually large, and fails the job above the limit."""

    def __init__(self, jobs: JobStore, job_id: str, settings: Hyperparameters) -> None:
        self._jobs, self._job = jobs, job_id
        self._limit = settings.max_mismatch
        self._reported = False

    async def look(self, figures: Mapping[str, float], version: int, device: str) -> None:
        """Check `figures` of the step that updates policy `version`. Raises `Mismatch` above the limit."""
        if (divergence := figures.get(MISMATCH)) is None:
            return
        if not divergence <= self._limit:  # also true for NaN
            raise Mismatch(
                f"engine and learner disagree: on tokens of version {version}, at its own weights, their divergence is "
                f"{divergence:.2g} nats a token (max_mismatch is {self._limit:g}), so that gradients would be of "
                "another policy than the one that samples. Try another engine for this model; raise max_mismatch if "
                "its arithmetic is meant to differ that much"
            )
        usual = self._limit * (WARN_BFLOAT16 if device.startswith("cuda") else WARN_FLOAT32)
        if divergence > usual and not self._reported:
            self._reported = True
            message = (
                f"engine and learner differ by {divergence:.2g} nats a token at version {version}, where up to "
                f"{usual:g} is usual; above {self._limit:g} the job ends"
            )
            await self._jobs.emit_event(self._job, message, level="warn")
