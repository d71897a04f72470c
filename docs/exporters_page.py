"""docs/exporters.md: where a job's measurements can go, and under which names. Written by generate.py."""

from __future__ import annotations

from headrace_gateway.exporters.export_processes import ATTEMPTS
from headrace_gateway.exporters.series import SERIES

TEXT = """\
# Exporters

<!-- Written by docs/generate.py. Change gateway/headrace_gateway/exporters/series.py or docs/exporters_page.py. -->

What a job measures ([metrics.md](metrics.md)) can go on to JSON lines, TensorBoard and Weights & Biases. What
Prometheus scrapes is on [prometheus.md](prometheus.md).

## While a job runs

**Files, of every job.** The operator sets `HEADRACE_EXPORTS='["jsonl", "tensorboard"]'`, or one of the two. In the data
folder are then `jobs/<job>/exports/jsonl/metrics.jsonl`, an entry a line, as the metrics route answers it; and
`jobs/<job>/exports/tensorboard`, for `tensorboard --logdir`.

**A run at Weights & Biases, of one job.** Its user says so in the job:

```json
{
  "integrations": [{"type": "wandb", "wandb": {"project": "sums", "name": "carry", "tags": ["tiny"]}}]
}
```

In a job file that is `[[integrations]]`, with the same fields. `pip install 'headrace[tensorboard,wandb]'` brings the
packages. wandb's own variables, in the gateway's environment, say who pays and where it goes: `WANDB_API_KEY`,
`WANDB_BASE_URL`, or `WANDB_MODE=offline`, which keeps the run in the folder `jobs/<job>/exports/wandb` for
`wandb sync`. The tests run it offline; nothing of ours was sent to a server.

Each is a process of its own beside the gateway, which reads the job's history: it is in nobody's way, and cannot end
or delay a job. A cursor says how far it is; what dies, or is stopped with the service, goes on there, and nothing is
there twice: files are cut back to the cursor, and wandb ignores an entry that it was sent before. One that fails says
so as an event of the job, is tried ATTEMPTS times, and is then given up until the gateway starts again.

## At any time after

```sh
headrace jobs export $JOB tensorboard --out runs/carry
headrace jobs export $JOB jsonl
headrace jobs export $JOB wandb --project sums
```

The same, from a gateway anywhere, of any job. Run again with the same folder, it adds what is new; with `--follow`, it
stays until the job has ended.

## Names

The names in TensorBoard and wandb. The x axis is the policy version; in wandb it is called `step`. `{worker}` is a
worker's name, `{key}` what the figure is of. A figure that there is not, the mean of no rewards, is left out: it is
not 0.

| name | of each | meaning |
| --- | --- | --- |
"""


def page() -> str:
    """The text."""
    rows = (f"| `{series.name}` | `{series.kind}` | {series.meaning} |\n" for series in SERIES)
    return TEXT.replace("ATTEMPTS", {3: "three"}[ATTEMPTS]) + "".join(rows)
