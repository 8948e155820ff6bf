"""Train a Faster R-CNN jointly, and keep a checkpoint that carries its DetectorSpec.

With no argument: the demo's detector, from scratch, on generated conveyor images. With your own data:
  python training/train.py --data photos/annotations.json --images photos --val photos/val.json --output runs/photos
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from runtime.coco import CocoAnnotations, read_coco
from runtime.command import command_parser, run_command
from runtime.conveyor import CLASS_NAMES
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.evaluation import evaluate_detector, held_out_images
from runtime.files import check_writable
from training.backend import TorchBackend
from training.checkpoint import load_weights, read_checkpoint
from training.data.coco import CocoDataset
from training.data.conveyor import ConveyorDataset
from training.losses import TrainSettings
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import PRESETS, spec_for
from training.schedule import TrainOptions
from training.trainer import Trainer

DEFAULTS = TrainOptions()


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults train the demo's weights."""
    parser = command_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="conveyor", help="COCO annotations, or `conveyor` for generated images")
    data.add_argument("--images", type=Path, help="folder of the images (default: the annotations' own)")
    data.add_argument("--val", help="COCO annotations to measure AP on, or `conveyor` for the 200 held-out images")
    data.add_argument("--val-images", type=Path, help="folder of the validation images")
    data.add_argument(
        "--count", type=int, default=6000, help="with conveyor: how many images to generate an epoch from"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--architecture", default="conveyor", choices=sorted(PRESETS), help="preset of the detector")
    model.add_argument("--weights", type=Path, help="start from this checkpoint of the same spec, not from scratch")
    train = parser.add_argument_group("training")
    train.add_argument("--output", type=Path, default=Path("runs/conveyor"), help="run folder")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's last.pt")
    train.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    train.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size)
    train.add_argument("--optimizer", default=DEFAULTS.optimizer, choices=["adamw", "sgd"])
    train.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate)
    train.add_argument("--weight-decay", type=float, default=DEFAULTS.weight_decay)
    train.add_argument("--warmup-steps", type=int, default=DEFAULTS.warmup_steps)
    train.add_argument("--schedule", default=DEFAULTS.schedule, choices=["cosine", "multistep"])
    train.add_argument("--rois-per-image", type=int, default=64, help="proposals per image to train the detector on")
    train.add_argument("--seed", type=int, default=DEFAULTS.seed)
    train.add_argument("--workers", type=int, default=DEFAULTS.workers, help="processes that read and augment images")
    train.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16: about 1.6 times as fast on a CPU with AVX512-BF16"
    )
    train.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    options = train_options(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    check_run_folder(arguments.output, arguments.resume)
    samples, class_names = training_samples(arguments)
    validation = validation_data(arguments)
    torch.manual_seed(options.seed)
    spec = spec_for(arguments.architecture, class_names=class_names)
    model = build_detector(spec)
    if arguments.weights is not None:
        load_weights(model, read_checkpoint(arguments.weights)["model"], arguments.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(
        model=model,
        spec=spec,
        samples=samples,
        validate=lambda model: validate(model, validation),
        options=options,
        settings=train_settings(arguments),
        folder=arguments.output,
        device=device,
        notes=provenance(argv, device),
    )
    if arguments.resume:
        trainer.resume()
    print(
        f"training {spec.architecture}: {len(samples)} images, {len(class_names)} classes, {device}, {arguments.output}"
    )
    trainer.fit()
    print(f"best AP {trainer.best_ap:.3f}: python export/to_onnx.py --weights {arguments.output / 'best.pt'}")
    return 0


def train_options(arguments: argparse.Namespace) -> TrainOptions:
    """The options that the command line gives."""
    names = TrainOptions.__dataclass_fields__
    return TrainOptions(**{name: value for name, value in vars(arguments).items() if name in names})


def train_settings(arguments: argparse.Namespace) -> TrainSettings:
    """Fewer proposals than torchvision's 2000 and 512: enough for some dozens of objects, and faster."""
    rois = arguments.rois_per_image
    return TrainSettings(
        rpn_pre_nms_top_n=300, rpn_post_nms_top_n=max(200, 2 * rois), rpn_batch_per_image=128, box_batch_per_image=rois
    )


def training_samples(arguments: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The data set and its class names."""
    if arguments.data == "conveyor":
        return ConveyorDataset(arguments.count, arguments.seed), CLASS_NAMES
    dataset = CocoDataset(arguments.data, arguments.images)
    return dataset, dataset.class_names


def validation_data(arguments: argparse.Namespace) -> CocoAnnotations:
    """Annotated images to measure AP on.

    Raises:
        UserError: own data without --val: AP on the training images would mean nothing.
    """
    if arguments.val == "conveyor" or (arguments.val is None and arguments.data == "conveyor"):
        return held_out_images()
    if arguments.val is not None:
        return read_coco(arguments.val, arguments.val_images)
    raise UserError(f"--data {arguments.data} came without --val: give COCO annotations of held-out images.")


def validate(model: FasterRcnn, validation: CocoAnnotations) -> dict[str, float]:
    """COCO AP of the model as it stands."""
    evaluation = evaluate_detector(Detector(TorchBackend(model, model.spec)), validation)
    return {"ap": evaluation.ap, "ap50": evaluation.ap50, "ap75": evaluation.ap75}


def check_run_folder(folder: Path, resume: bool) -> None:
    """A new run does not write over an older one.

    Raises:
        UserError: `folder` holds a run and --resume was not given.
    """
    check_writable(folder / "last.pt")
    if not resume and any((folder / name).exists() for name in ("last.pt", "best.pt")):
        raise UserError(f"{folder} holds an earlier run: give --resume to go on with it, or another --output.")


def provenance(argv: list[str] | None, device: torch.device) -> dict[str, str]:
    """How the weights came to be, for the checkpoint's notes."""
    words = sys.argv[1:] if argv is None else argv
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "command": shlex.join(["python", "training/train.py", *words]),
        "hardware": f"{hardware} ({platform.machine()})",
        "torch": str(torch.__version__),
        "initial_weights": "random",
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
