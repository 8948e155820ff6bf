"""List every fault of a data set before training on it, and draw a sample of it.

    python training/data/validate.py --data photos/annotations.json --val photos/val.json
    python training/data/validate.py --data VOCdevkit --split 2007_trainval+2012_trainval --val-split 2007_test
    python training/data/validate.py --data data.yaml --allow image-without-annotation

Prints the number of faults by kind, examples of each, and how many objects each class has. OUTPUT gets faults.json with
all of them and ground_truth.png with sampled images and their boxes. The exit code is 1 if there are faults, of kinds
other than those given with --allow.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import os
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

from runtime.annotation_faults import KINDS
from runtime.annotations import declares_split
from runtime.command import command_parser, run_command
from runtime.errors import UserError
from runtime.files import atomic_output, check_writable, write_json
from runtime.tables import format_table
from training.data.check_data import CheckedSet, check_between, check_folders, check_images, read_set
from training.data.picture_sheet import draw_ground_truth

EXAMPLES = 3  # of each kind of fault are printed
SHEET_NAME, FAULTS_NAME = "ground_truth.png", "faults.json"


def build_parser() -> argparse.ArgumentParser:
    """The command line; see the module's text."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="annotations: COCO JSON, Pascal VOC folder, YOLO data.yaml"
    )
    parser.add_argument("--split", help="part of --data to train on: trainval, 2007_trainval+2012_trainval, train")
    parser.add_argument("--images", type=Path, help="folder of the images (default: the annotations' own)")
    parser.add_argument("--val", type=Path, help="annotations of the validation images")
    parser.add_argument("--val-split", help="part of --val, or of --data where --val is not given: val, test")
    parser.add_argument("--val-images", type=Path, help="folder of the validation images")
    parser.add_argument("--output", type=Path, default=Path("output/check-data"), help="folder for what is written")
    parser.add_argument(
        "--allow",
        nargs="+",
        choices=list(KINDS),
        default=[],
        metavar="KIND",
        help="list these, but do not fail for them",
    )
    parser.add_argument("--sheet", type=int, default=16, help="how many images to draw, 0: none")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that open images")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    parts = [read_set("train", arguments.data, arguments.images, arguments.split)]
    if arguments.val is not None:
        parts.append(read_set("val", arguments.val, arguments.val_images, arguments.val_split))
    elif arguments.val_split is not None or (parts[0].annotations and declares_split(arguments.data, "val")):
        images = arguments.val_images or arguments.images
        parts.append(read_set("val", arguments.data, images, arguments.val_split))
    for part in parts:
        check_images(part, arguments.workers)
    check_folders(parts)
    if len(parts) == 2:
        check_between(*parts)
    print("\n\n".join(text for text in (class_report(parts), fault_report(parts)) if text))
    write_json(arguments.output / FAULTS_NAME, faults_content(parts), indent=2)
    written = [FAULTS_NAME] + [SHEET_NAME] * write_sheet(arguments.output / SHEET_NAME, parts, arguments)
    print(f"\n{', '.join(written)}: {arguments.output}")
    return verdict(parts, arguments.allow)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        UserError: a number out of its range.
        OutputError: the output folder cannot be written.
    """
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give at least 1.")
    if arguments.sheet < 0:
        raise UserError(f"--sheet {arguments.sheet}: give how many images to draw, 0 for none.")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give a whole number of at least 0.")
    if arguments.val_images is not None and arguments.val is None and arguments.val_split is None:
        raise UserError(f"--val-images {arguments.val_images} came without --val: give their annotations too.")
    check_writable(arguments.output / FAULTS_NAME)


def class_counts(part: CheckedSet) -> dict[str, tuple[int, int]]:
    """Class name -> its number of objects, and of images that have one."""
    if part.annotations is None:
        return {}
    objects, images = Counter[int](), Counter[int]()
    for image in part.images:
        objects.update(image.class_ids.tolist())
        images.update(set(image.class_ids.tolist()))
    return {name: (objects[index], images[index]) for index, name in enumerate(part.annotations.class_names)}


def class_report(parts: Sequence[CheckedSet]) -> str:
    """The histogram of classes; empty if no annotations could be read."""
    counts = [class_counts(part) for part in parts]
    names = list(dict.fromkeys(name for one in counts for name in one))
    if not names:
        return ""
    header = ["class", *(f"{part.name} {what}" for part in parts for what in ("objects", "images"))]
    rows = [[name, *(value for one in counts for value in one.get(name, (0, 0)))] for name in names]
    sums = [sum(value[0] for value in one.values()) for one in counts]
    total = [value for part, count in zip(parts, sums, strict=True) for value in (count, len(part.images))]
    return format_table(header, [*rows, ["all", *total]])


def fault_report(parts: Sequence[CheckedSet]) -> str:
    """The number of faults by kind, and examples; empty if there are none."""
    counts = [Counter(fault.kind for fault in part.faults) for part in parts]
    kinds = [kind for kind in KINDS if any(one[kind] for one in counts)]
    if not kinds:
        return ""
    rows = [[kind, KINDS[kind], *(one[kind] for one in counts)] for kind in kinds]
    table = format_table(["fault", "", *(part.name for part in parts)], rows, text_columns=2)
    lines = [table, ""]
    for kind in kinds:
        found = [fault for part in parts for fault in part.faults if fault.kind == kind]
        lines += [f"{kind}: {fault}" for fault in found[:EXAMPLES]]
        lines += [f"{kind}: ... and {len(found) - EXAMPLES} more"] * (len(found) > EXAMPLES)
    return "\n".join(lines)


def faults_content(parts: Sequence[CheckedSet]) -> dict[str, object]:
    """What faults.json holds."""
    content: dict[str, object] = {}
    for part in parts:
        content[part.name] = {
            "annotations": None if part.annotations is None else str(part.annotations.file),
            "images": len(part.images),
            "classes": {
                name: {"objects": objects, "images": images} for name, (objects, images) in class_counts(part).items()
            },
            "counts": dict(Counter(fault.kind for fault in part.faults)),
            "faults": [vars(fault) for fault in part.faults],
        }
    return content


def write_sheet(path: Path, parts: Sequence[CheckedSet], arguments: argparse.Namespace) -> bool:
    """Draws sampled training images with their boxes; False if none are asked for, or none can be read."""
    images, annotations = parts[0].readable(), parts[0].annotations
    if annotations is None or not images or arguments.sheet == 0:
        return False
    chosen = np.random.default_rng(arguments.seed).permutation(len(images))[: arguments.sheet]
    sheet = draw_ground_truth([images[index] for index in sorted(chosen.tolist())], annotations.class_names)
    with atomic_output(path) as temporary:
        cv2.imwrite(str(temporary), sheet)
    return True


def verdict(parts: Sequence[CheckedSet], allowed: Sequence[str]) -> int:
    """Says the outcome; the exit code."""
    faults = [fault for part in parts for fault in part.faults]
    serious = sum(fault.kind not in allowed for fault in faults)
    images = sum(len(part.images) for part in parts)
    if not faults:
        print(f"no faults in {images} images")
    else:
        excused = f", {len(faults) - serious} of them allowed" if len(faults) > serious else ""
        print(f"{len(faults)} faults in {images} images{excused}")
    return 1 if serious else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
