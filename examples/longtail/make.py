"""Makes everything in this folder that is not code: train.jsonl, validation.jsonl and the base model, from a seed.

    python -m examples.longtail.make --seed 0

It takes about three minutes on one thread. The data files are the adder's, the same bytes on every machine; the
weights are the same on the same torch build and processor. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..adder.adder_pretrain import Recipe, pretrain, save
from ..adder.adder_problems import write_data
from ..adder.adder_tokenizer import build_tokenizer
from .longtail_problems import CONTEXT, PIECES, long_demonstration

HERE = Path(__file__).resolve().parent
RECIPE = Recipe(
    write=long_demonstration, steps=640, batch=4096, step_tokens=3584, context=CONTEXT, intermediate_size=320
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the data files; the model goes to its model/")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train = write_data(arguments.out, arguments.seed)
    tokenizer = build_tokenizer(PIECES, CONTEXT)
    save(pretrain(tokenizer, train, arguments.seed, RECIPE), tokenizer, arguments.out / "model")


if __name__ == "__main__":
    main()
