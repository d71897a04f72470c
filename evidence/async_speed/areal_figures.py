"""AReaL's cluster, from what its authors published: the facts, and the device speeds that follow from them.

Sources: the paper (arXiv 2505.24298: tables 1 to 3, figures 5c and 6b) and the notes on its releases 0.2 and 0.3.

The 16-node job, DeepSeek-R1-Distill-Qwen-1.5B on mathematics:
  128 H800, three quarters of them for generation · 512 prompts × 16 completions a step · 27,648 tokens at most, under
  5 % cut off there · 250 steps in 41.0 h synchronous, 14.8 h asynchronous · 128.7k tokens/s at η = 0, 396.8k at η = ∞ ·
  231k tokens/s generated on 4 nodes

Both clocks agree on the size of a step: 41.0 h / 250 × 128.7k/s and 14.8 h / 250 × 356.6k/s are 76.0M tokens, 9,275 a
completion. Device speeds follow from these; nothing is fitted to what our scheduler makes of them:

  training   at η = ∞ the trainer never waits: it trains 396.8k tokens/s
  decoding   a step with r requests takes a + b·r. On 4 nodes a full device decodes at 231k / 24 tokens/s; and the
             synchronous step, less its training, is the time to generate: 27,648 steps and the device's share of the
             tokens. Two equations, two unknowns: a = 12.6 ms, b = 0.065 ms.

So η = 0 and η = ∞ of their curve are in the calibration; what the scheduler does at every η with such devices, and what
it masks, is measured. A check on b: 320 completions of 7k tokens fill 65 GB of cache. To read one of them in b seconds
takes 3.1 TB/s, and an H800's memory gives 3.35.
"""

from __future__ import annotations

from headrace_lab.virtual.simulated_cluster import Cluster
from headrace_lab.virtual.simulated_engine import DecodeSpeed, Lengths

UNBOUNDED = 64
"""The bound used for η = ∞: more steps than a run measures."""
PUBLISHED = {0: 128.7, 1: 269.3, 2: 356.6, 4: 356.6, 8: 371.7, 16: 382.4, UNBOUNDED: 396.8}
"""k tokens/s by η, 16 nodes (figure 5c)."""
SYNCHRONOUS_HOURS = 41.0
STEPS = 250
ROLLOUT_DEVICES, TRAINING_DEVICES = 96, 32
BATCH_SIZE, GROUP_SIZE = 512, 16
CAP, CAPPED_SHARE = 27_648, 0.05
GENERATED_PER_DEVICE = 231e3 / 24
SLOTS = 320
"""Completions per device: 7k tokens each (the mean of those in flight) at 28 kB per token, in the 65 GB of memory that
the weights leave free."""
UPDATE_PAUSE = PUBLISH = 1.0
"""Seconds, assumed: 3 GB over a network of 25 Gbit/s or better."""

TOKENS_A_STEP = SYNCHRONOUS_HOURS * 3600 / STEPS * PUBLISHED[0] * 1e3
TRAINED_PER_SECOND = PUBLISHED[UNBOUNDED] * 1e3


SCALE = 8
"""Numbers of devices and prompts are divided by this, which leaves tokens per device and seconds per step the same."""


def split() -> Cluster:
    """Three quarters of the devices generate and a quarter trains: the layout of both modes of AReaL."""
    return _cluster(ROLLOUT_DEVICES, TRAINING_DEVICES)


def colocated() -> Cluster:
    """All devices generate, then all train, and switching costs nothing: the best case of a synchronous system."""
    every = ROLLOUT_DEVICES + TRAINING_DEVICES
    return _cluster(every, every)


def _cluster(rollout: int, training: int) -> Cluster:
    return Cluster(
        rollout_devices=rollout // SCALE,
        speed=decode_speed(),
        slots=SLOTS,
        trained_per_second=TRAINED_PER_SECOND * training / TRAINING_DEVICES / SCALE,
        publish_seconds=PUBLISH,
        batch_size=BATCH_SIZE // SCALE,
        group_size=GROUP_SIZE,
        lengths=Lengths(TOKENS_A_STEP / (BATCH_SIZE * GROUP_SIZE), CAP, CAPPED_SHARE),
    )


def decode_speed() -> DecodeSpeed:
    """a and b of a decode step (see above), from the throughput of a full device and from the synchronous step."""
    generation = SYNCHRONOUS_HOURS * 3600 / STEPS - TOKENS_A_STEP / TRAINED_PER_SECOND
    tokens = TOKENS_A_STEP / ROLLOUT_DEVICES
    # a + SLOTS·b = SLOTS / GENERATED_PER_DEVICE;   CAP·a + tokens·b = generation
    full = SLOTS / GENERATED_PER_DEVICE
    each = (CAP * full - generation) / (CAP * SLOTS - tokens)
    return DecodeSpeed(full - SLOTS * each, each, UPDATE_PAUSE)
