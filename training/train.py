"""Train a Faster R-CNN, and keep a checkpoint that carries its DetectorSpec.

With no argument: the demo's detector, from scratch, on generated conveyor images. With your own data:
  python training/train.py --data photos/annotations.json --images photos --val photos/val.json --output runs/photos
In the paper's four steps instead of jointly:
  python training/train.py --scheme alternating --architecture conveyor_c4 --output runs/alternating
On two GPUs, or with two processes on a CPU; --batch-size is that of all processes together:
  torchrun --nproc-per-node 2 training/train.py --data photos/annotations.json --val photos/val.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from runtime.command import command_parser, run_command
from training.arguments import add_training_arguments
from training.data.sources import add_data_arguments, training_samples, validation_data
from training.distributed import joined
from training.initial_weights import adapt_to_settings, add_weight_arguments, foreign_spec, set_initial_weights
from training.models.arguments import add_model_arguments, spec_of
from training.models.detectors import build_detector
from training.proposals import measure_recall
from training.run_folder import provenance, record_run
from training.schedule import train_options
from training.schemes import SchemeRun, add_scheme_arguments, check_scheme_folder, train_scheme
from training.settings import train_settings
from training.validation import validate


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults train the demo's weights."""
    parser = command_parser(__doc__)
    add_data_arguments(parser.add_argument_group("data"))
    model = parser.add_argument_group("model")
    add_model_arguments(model)
    add_weight_arguments(model)
    add_scheme_arguments(add_training_arguments(parser, "runs/conveyor"))
    return parser


@joined
def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    options = train_options(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    check_scheme_folder(arguments.output, arguments.scheme, arguments.resume)
    samples, class_names = training_samples(arguments)
    validation = validation_data(arguments, class_names)
    torch.manual_seed(options.seed)
    spec = spec_of(arguments, class_names, foreign_spec(arguments, class_names))
    model, settings = build_detector(spec), train_settings(arguments)
    adapt_to_settings(model, settings)
    initial_weights = set_initial_weights(model, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = SchemeRun(
        model=model,
        samples=samples,
        validate=lambda model: validate(model, validation),
        recall=lambda model: measure_recall(model, validation),
        options=options,
        settings=settings,
        frozen_stages=arguments.frozen_stages,
        folder=arguments.output,
        device=device,
        notes=provenance("training/train.py", argv, device, initial_weights),
    )
    record_run(arguments.output, arguments, spec, run.notes)
    print(
        f"training {spec.architecture}: {len(samples)} images, {len(class_names)} classes, {device}, {arguments.output}"
    )
    best_ap = train_scheme(arguments.scheme, run, resume=arguments.resume)
    print(f"best AP {best_ap:.3f}: python export/to_onnx.py --weights {arguments.output / 'best.pt'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
