"""Take the least important channels out of a detector, and train what is left.

    python training/prune.py --weights runs/mine/best.pt --ratio 0.3 --data mine/train.json --val mine/val.json
    python training/prune.py --weights runs/mine/best.pt --ratio 0.3 --data mine/train.json --val mine/val.json --resume
    python training/prune.py --ratio 0.3 --from-scratch --output runs/narrow    the same widths, random weights

The output folder gets best.pt, an ordinary checkpoint whose spec tells the new widths, and pruning.json: parameters,
multiply-accumulates, CPU time and AP before and after. With no --weights the demo's detector is pruned.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from runtime.command import command_parser, run_command
from runtime.errors import UserError
from training.arguments import add_training_arguments
from training.checkpoint import load_checkpoint
from training.data.classes import check_classes
from training.data.sources import add_data_arguments, training_samples, validation_data
from training.distributed import from_first_process, joined
from training.models.detectors import FasterRcnn, build_detector
from training.position import check_start
from training.prune_channels import IMPORTANCES, prune_channels
from training.prune_cost import measured_costs
from training.prune_report import PruneReport, read_report, write_report
from training.quantise import DEMO_WEIGHTS
from training.quantise_ranges import weights_digest
from training.run_folder import check_run_folder, provenance, record_run
from training.schedule import train_options
from training.settings import train_settings
from training.tasks import JointTask
from training.trainer import Trainer
from training.validation import validate


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    prune = parser.add_argument_group("pruning")
    prune.add_argument("--weights", type=Path, help="checkpoint to prune (default: assets/conveyor.pt)")
    prune.add_argument("--ratio", type=float, default=0.3, help="share of the channels of each layer to take out")
    prune.add_argument(
        "--importance", default="l2", choices=list(IMPORTANCES), help="norm of the weights of a channel in all layers"
    )
    prune.add_argument("--round-to", type=int, default=8, help="widths are rounded down to multiples of this")
    prune.add_argument(
        "--from-scratch", action="store_true", help="keep the widths but not the weights, to see what these are worth"
    )
    add_data_arguments(parser.add_argument_group("data"))
    add_training_arguments(parser, "runs/pruned")
    return parser


@joined
def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    options = train_options(arguments)
    check_arguments(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    check_run_folder(arguments.output, arguments.resume)
    original, spec = load_checkpoint(arguments.weights)
    samples, class_names = training_samples(arguments)
    check_classes(spec.class_names, class_names, arguments.weights)
    validation = validation_data(arguments, class_names)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    model = prune_channels(
        original, ratio=arguments.ratio, importance=arguments.importance, round_to=arguments.round_to
    )
    costs = [] if arguments.resume else from_first_process(lambda: measured_costs([original, model]))
    if arguments.from_scratch:
        torch.manual_seed(options.seed)
        model = build_detector(model.spec)
    trainer = Trainer(
        model=model,
        spec=model.spec,
        samples=samples,
        validate=lambda model: validate(model, validation),
        options=options,
        task=JointTask(train_settings(arguments)),
        folder=arguments.output,
        device=device,
        notes=provenance("training/prune.py", argv, device, origin(arguments)),
    )
    start = start_of(original, arguments)
    if arguments.resume:
        report = read_report(arguments.output)
        what, decided_by = "other weights or another pruning", "--weights and options of pruning"
        check_start(report.start, start, arguments.output, what, decided_by)
        trainer.resume()
    else:
        aps = [validate(one.to(device).eval(), validation)["ap"] for one in (original, model)]
        report = PruneReport.measured(start, costs, aps)
        write_report(arguments.output, report)
    record_run(arguments.output, arguments, model.spec, trainer.notes)
    print(
        f"pruned {spec.architecture}: {len(samples)} images, {device}, {arguments.output}\n{report.table()}", flush=True
    )
    trainer.fit()
    report = report.fine_tuned(trainer.best_ap)
    write_report(arguments.output, report)
    print(f"{report.table()}\npython export/to_onnx.py --weights {arguments.output / 'best.pt'}")
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """What can be wrong before any work is done; the demo's weights where none are named.

    Raises:
        UserError: a number out of its range.
    """
    if not 0 < arguments.ratio < 1:
        raise UserError(f"--ratio is {arguments.ratio}: expected a number above 0 and below 1, like 0.3.")
    if arguments.round_to < 1:
        raise UserError(f"--round-to is {arguments.round_to}: expected 1 or more.")
    arguments.weights = arguments.weights or DEMO_WEIGHTS


def start_of(original: FasterRcnn, arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides which weights fine-tuning begins with."""
    names = ("ratio", "importance", "round_to", "from_scratch")
    return {
        "weights": weights_digest(original.state_dict()),
        **{name: getattr(arguments, name) for name in names},
    }


def origin(arguments: argparse.Namespace) -> str:
    """The weights that training begins with, for the checkpoint's notes."""
    return "random" if arguments.from_scratch else f"{arguments.weights.name}, pruned by {arguments.ratio}"


if __name__ == "__main__":
    sys.exit(run_command(main))
