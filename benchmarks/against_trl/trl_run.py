"""One run of TRL's synchronous GRPOTrainer, started by `sides.py` with the Python of TRL's own environment.

Imports nothing of this repository but the task's reward, the same function that Headrace's job uses. Writes one JSON
object per line to `--out`: first `{"ready": seconds of import and loading}`, then for each step

    {"step": 5, "seconds": 6.1, "samples": 1280, "reward": 0.52, "tokens": 57.3, "checkpoint": "…/step-5"}

`seconds` count from the beginning of the first step; `checkpoint` is null except on every `--save-every`-th step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

BEGAN = time.monotonic()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--train", "--reward", "--out", "--checkpoints"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--steps", "--save-every", "--groups", "--group-size", "--max-tokens", "--threads", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True, help="completions of one forward pass")
    parser.add_argument("--learning-rate", type=float, required=True)
    return parser.parse_args()


def reward(path: Path) -> Callable[..., list[float]]:
    """`correct` of the task's reward file, with the signature that TRL expects."""
    spec = importlib.util.spec_from_file_location("task_reward", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def correct(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        return [
            module.correct({"output_text": text}, {"answer": right}) for text, right in zip(texts, answer, strict=True)
        ]

    return correct


def settings(options: argparse.Namespace) -> Any:
    """TRL's settings for the optimizer and objective of Headrace's `grpo`: token mean over the batch, no divergence."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(options.checkpoints),
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.groups * options.group_size // options.micro_batch,
        num_generations=options.group_size,
        max_completion_length=options.max_tokens,
        temperature=1.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        loss_type="dapo",
        epsilon=0.2,
        beta=0.0,
        num_iterations=1,
        # the fastest settings on two cores
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )


def log(options: argparse.Namespace, lines: TextIO) -> Any:
    """A callback that writes the lines, and saves the model on every `save_every`-th step.

    The caller sets its attribute `trainer`.
    """
    from transformers import TrainerCallback

    class Log(TrainerCallback):
        began = 0.0
        trainer: Any = None

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()
            print(json.dumps({"ready": round(self.began - BEGAN, 3)}), file=lines)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, folder, measured = state.global_step, None, self.trainer._metrics["train"]
            if step % options.save_every == 0:
                folder = str(options.checkpoints / f"step-{step}")
                self.trainer.model.save_pretrained(folder)
                self.trainer.processing_class.save_pretrained(folder)
            line = {
                "step": step,
                "seconds": round(time.monotonic() - self.began, 3),
                "samples": step * options.groups * options.group_size,
                "reward": round(measured["reward"][-1], 4),
                "tokens": round(measured["completions/mean_length"][-1], 2),
                "checkpoint": folder,
            }
            print(json.dumps(line), file=lines)

    return Log()


def main() -> None:
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOTrainer

    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in options.train.read_text().splitlines()]
    with options.out.open("w", buffering=1) as lines:
        callback = log(options, lines)
        callback.trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            reward_funcs=reward(options.reward),
            args=settings(options),
            train_dataset=Dataset.from_list([{"prompt": row["messages"], "answer": row["answer"]} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[callback],
        )
        callback.trainer.train()


if __name__ == "__main__":
    main()
