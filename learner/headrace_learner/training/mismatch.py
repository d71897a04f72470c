"""Whether engine and learner compute the same model: what they say of the same tokens at the same weights.

A token's behaviour log-probability is the engine's, its first log-probability in a step is the learner's. Of
completions that the policy being updated sampled from first to last token, both are of the same weights, and should
differ by rounding alone. If they do not, every ratio and every gradient is of another policy than the one that samples.

    KL(engine ‖ learner) ≈ mean of exp(−d) − 1 + d, d = log π_engine − log π_learner      (k3, `kl`)

float32 on both sides gives 1e-9 to 1e-6; bfloat16 1e-4 to 1e-3. A cause is far above: another formula, other weights,
another temperature. Caches of older weights, which `update_mode` keep_kv keeps on purpose, are none: completions over
them are not looked at (`token_selection`). A step without any other has no figure.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_core.jobs.job_store import JobStore

from .step_metrics import MISMATCH

WARN_FLOAT32 = 0.01
"""Of the limit: above it the job is warned."""
WARN_BFLOAT16 = 0.1


class Mismatch(InvalidRequest):
    """Engine and learner do not compute the same model."""

    code = "engine_mismatch"


class MismatchWatch:
    """Of one learner: says it once when the two drift apart, and ends the job where they are far apart."""

    def __init__(self, jobs: JobStore, job_id: str, settings: Hyperparameters) -> None:
        self._jobs, self._job = jobs, job_id
        self._limit = settings.max_mismatch
        self._reported = False

    async def look(self, figures: Mapping[str, float], version: int, device: str) -> None:
        """At `figures` of the step that updates policy `version`. Raises `Mismatch` above the limit."""
        if (found := figures.get(MISMATCH)) is None:
            return
        if not found <= self._limit:  # NaN is no agreement
            raise Mismatch(
                f"engine and learner disagree: on tokens of version {version}, at its own weights, their divergence is "
                f"{found:.2g} nats a token (max_mismatch is {self._limit:g}), so that gradients would be of another "
                "policy than the one that samples. Try another engine for this model; raise max_mismatch if its "
                "arithmetic is meant to differ that much"
            )
        usual = self._limit * (WARN_BFLOAT16 if device.startswith("cuda") else WARN_FLOAT32)
        if found > usual and not self._reported:
            self._reported = True
            message = (
                f"engine and learner differ by {found:.2g} nats a token at version {version}, where up to {usual:g} is "
                f"usual; above {self._limit:g} the job ends"
            )
            await self._jobs.emit_event(self._job, message, level="warn")
