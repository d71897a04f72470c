"""Makes everything in this folder that is not code: train.jsonl, validation.jsonl and the base model, from a seed.

    python examples/adder/make.py --seed 0 --out examples/adder

It takes about three minutes on one thread. The data files are the same bytes on every machine; the weights are the
same on the same torch build and processor. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from adder_problems import TRAIN_ROWS, Problem, row, split_problems

HERE = Path(__file__).resolve().parent


def write_rows(path: Path, problems: Iterable[Problem]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row(problem)) + "\n" for problem in problems))


def write_data(folder: Path, seed: int) -> list[Problem]:
    """Writes both data files; returns the train problems, of which train.jsonl holds the first `TRAIN_ROWS`."""
    train, validation = split_problems(seed)
    write_rows(folder / "train.jsonl", train[:TRAIN_ROWS])
    write_rows(folder / "validation.jsonl", validation)
    return train


def write_model(folder: Path, problems: list[Problem], seed: int) -> None:
    """Trains the base model on `problems` and writes it, with its tokenizer, as a Hugging Face folder."""
    from adder_pretrain import pretrain
    from adder_tokenizer import build_tokenizer
    from transformers import GenerationConfig

    tokenizer = build_tokenizer()
    model = pretrain(tokenizer, problems, seed)
    # The base is sampled as it is: no temperature or cut-off hides in its generation settings.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the data files; the model goes to its model/")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_model(arguments.out / "model", write_data(arguments.out, arguments.seed), arguments.seed)


if __name__ == "__main__":
    main()
