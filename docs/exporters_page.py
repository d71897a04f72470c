"""docs/exporters.md: where a job's measurements can go, and under which names. Written by generate.py."""

from __future__ import annotations

from headrace_gateway.exporters.export_processes import ATTEMPTS
from headrace_gateway.exporters.series import SERIES

TEXT = """\
# Exporters

<!-- Written by docs/generate.py. Change gateway/headrace_gateway/exporters/series.py or docs/exporters_page.py. -->

A job's measurements ([metrics.md](metrics.md)) can be exported to JSON lines, TensorBoard and Weights & Biases. What
Prometheus scrapes is on [prometheus.md](prometheus.md).

## While a job runs

**Files, of every job.** The operator sets `HEADRACE_EXPORTS='["jsonl", "tensorboard"]'`, or one of the two. The data
folder then has `jobs/<job>/exports/jsonl/metrics.jsonl`, one entry a line, as the metrics route returns it, and
`jobs/<job>/exports/tensorboard`, for `tensorboard --logdir`.

**A run at Weights & Biases, of one job.** Its user asks for it in the job:

```json
{
  "integrations": [{"type": "wandb", "wandb": {"project": "sums", "name": "carry", "tags": ["tiny"]}}]
}
```

In a job file that is `[[integrations]]`, with the same fields. `pip install 'headrace[tensorboard,wandb]'` brings the
packages. wandb's own variables in the gateway's environment set the account and the server: `WANDB_API_KEY`,
`WANDB_BASE_URL`, or `WANDB_MODE=offline`, which keeps the run in the folder `jobs/<job>/exports/wandb` for
`wandb sync`. The tests run it offline only; it was not tried with a server.

Each export is a separate process beside the gateway, which reads the job's history and cannot end or delay the job. A
cursor holds its position; an export that dies, or is stopped with the service, continues there, and no entry is written
twice: files are cut back to the cursor, and wandb ignores an entry that it has already. A failure is an event of the
job; the export is tried ATTEMPTS times, and then stays off until the gateway starts again.

## At any time after

```sh
headrace jobs export $JOB tensorboard --out runs/carry
headrace jobs export $JOB jsonl
headrace jobs export $JOB wandb --project sums
```

The command exports any job of any gateway. A second run with the same folder adds what is new; with `--follow` the
command continues until the job has ended.

## Names

These are the names in TensorBoard and wandb. The x axis is the policy version; in wandb it is called `step`. `{worker}`
is a worker's name, `{key}` the subject of the figure. A figure that does not exist, such as the mean of no rewards, is
omitted; it is not 0.

| name | of each | meaning |
| --- | --- | --- |
"""


def page() -> str:
    """The text."""
    rows = (f"| `{series.name}` | `{series.kind}` | {series.meaning} |\n" for series in SERIES)
    return TEXT.replace("ATTEMPTS", {3: "three"}[ATTEMPTS]) + "".join(rows)
