"""Makes everything in this folder that is not code: train.jsonl, validation.jsonl and the base model, from a seed.

    python -m examples.adder.make --seed 0

It takes about three minutes on one thread. The data files are the same bytes on every machine; the weights are the
same on the same torch build and processor. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .adder_problems import write_data

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the data files; the model goes to its model/")
    arguments = parser.parse_args()
    # Only here: the data files can be made without torch and transformers.
    from .adder_pretrain import pretrain, save
    from .adder_tokenizer import build_tokenizer

    arguments.out.mkdir(parents=True, exist_ok=True)
    train = write_data(arguments.out, arguments.seed)
    tokenizer = build_tokenizer()
    save(pretrain(tokenizer, train, arguments.seed), tokenizer, arguments.out / "model")


if __name__ == "__main__":
    main()
