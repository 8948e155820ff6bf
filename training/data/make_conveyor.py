"""Write a data set of generated conveyor pictures: OUTPUT/train and OUTPUT/val, images and COCO annotations.

    python training/data/make_conveyor.py --output data/conveyor --train 3000 --val 200 --seed 7

The same arguments give the same pictures; an interrupted run goes on where it stopped. Training and validation
pictures come from separate parts of the random stream and are never the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse

from tqdm import tqdm

from runtime.command import command_parser, run_command
from runtime.conveyor.dataset import ENCODING, HELD_OUT_FIRST, write_dataset
from runtime.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line; see the module's text."""
    parser = command_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder; train/ and val/ are made in it")
    parser.add_argument("--train", type=int, default=3000, help="number of training pictures, 0 for none")
    parser.add_argument("--val", type=int, default=200, help="number of validation pictures, 0 for none")
    parser.add_argument("--seed", type=int, default=7, help="another seed, other pictures")
    parser.add_argument("--format", choices=sorted(ENCODING), default="jpg", help="image files")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    counts = {"train": arguments.train, "val": arguments.val}
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise UserError(
            f"--train {arguments.train} --val {arguments.val}: give numbers of pictures, at least one in all."
        )
    if arguments.train > HELD_OUT_FIRST:
        raise UserError(f"--train {arguments.train}: at most {HELD_OUT_FIRST} training pictures exist per seed.")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give a whole number of at least 0.")
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give at least 1.")
    for name, count in counts.items():
        if count == 0:
            continue
        first = HELD_OUT_FIRST if name == "val" else 0
        with tqdm(total=count, desc=name, unit="image") as bar:
            path = write_dataset(
                arguments.output / name,
                count,
                arguments.seed,
                first=first,
                image_format=arguments.format,
                workers=arguments.workers,
                progress=bar.update,
            )
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
