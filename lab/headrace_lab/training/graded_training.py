"""Trains the adder with any grader of the service, on policy: a `LaggedRun` whose rewards come from `registry.build`.

Training uses the grader's scores. As in a job, each sample has its key (`draw`), on which random graders depend.
`accuracy` does not depend on the grader: it is the share of right answers among greedy completions of held-out rows.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_rewards.protocol import Reward, Sample, SampleKey
from headrace_rewards.registry import build
from headrace_rollout.reward_scoring import score, value_of

from .lagged_training import LaggedRun, Task, adder

RIGHT: dict[str, Any] = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "<answer> {{ item.answer }} </answer>",
    "operation": "like",
}
"""A grader that rewards the right answer between its tags."""


RowFilter = Callable[[dict[str, Any]], bool]


def every(row: dict[str, Any]) -> bool:
    """All rows."""
    return True


def carrying(row: dict[str, Any]) -> bool:
    """Rows whose addition has a carry, for which only one of the two forms of working is right."""
    return bool(row["carry"])


def of_rows(task: Task, rows: RowFilter, folder: Path) -> Task:
    """The task with only those training and validation rows, which are written to files in `folder`."""

    def chosen(file: Path) -> Path:
        lines = file.read_text().splitlines(keepends=True)
        (folder / file.name).write_text("".join(line for line in lines if rows(json.loads(line))))
        return folder / file.name

    return replace(task, training_file=chosen(task.training_file), validation_file=chosen(task.validation_file))


class GradedRun(LaggedRun):
    """Trains on the scores of a grader that runs in this process."""

    def __init__(self, settings: Hyperparameters, grader: dict[str, Any], rows: RowFilter = every) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="headrace-evidence-") as folder:
            super().__init__(of_rows(adder(), rows, Path(folder)), settings)
        self._rows = {prompt.row: prompt.data for prompt in self._prompts}
        self.grade_by(grader)

    def grade_by(self, grader: dict[str, Any]) -> None:
        """Use the grader with this description from now on."""
        self._grader = build(grader)

    def groups(self) -> list[Group]:
        """`batch_size` groups for the next step, graded."""
        return self.graded(super().groups())

    def graded(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the grader's scores as rewards; None where it has none."""
        return asyncio.run(self._graded(self._grader, groups))

    async def _graded(self, grader: Reward, groups: Sequence[Group]) -> list[Group]:
        return [await self._graded_group(grader, group) for group in groups]

    async def _graded_group(self, grader: Reward, group: Group) -> Group:
        row = self._rows[group.row]
        samples = [
            Sample(
                output_text=self._tokenizer.text(completion.token_ids),
                item=row.item,
                messages=row.messages,
                draw=SampleKey(group.group_id, number),
            )
            for number, completion in enumerate(group.completions)
        ]
        values = [value_of(outcome) for outcome in await score(grader, samples, attempts=1)]
        scored = zip(group.completions, values, strict=True)
        return replace(
            group, completions=tuple(replace(c, reward=value, components=parts) for c, (value, parts) in scored)
        )
