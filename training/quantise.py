"""Fine-tune a detector with INT8's rounding in its forward pass, for models that calibration alone cannot hold.

    python training/quantise.py                                  the demo's detector, on generated conveyor images
    python training/quantise.py --weights runs/photos/best.pt --data photos/annotations.json --val photos/val.json
    python training/quantise.py --output runs/qat --resume       go on after an interruption

The output folder gets best.pt, an ordinary float32 checkpoint, and ranges.json, the learned ranges of activations:
    python export/to_onnx.py --weights runs/qat/best.pt --output qat.onnx
    python calib/calibrate.py --onnx qat.onnx --precision int8 --ranges runs/qat/ranges.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor

from runtime.command import command_parser, run_command
from runtime.conveyor import CLASS_NAMES
from runtime.errors import UserError
from runtime.preprocess import preprocess
from runtime.progress import progress
from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.data.sources import add_data_arguments, validation_data
from training.data.sources import training_samples as samples_of
from training.fake_quantise import FakeQuantisation
from training.models.detectors import FasterRcnn
from training.quantise_fold import move_batch_norms_into_kernels
from training.quantise_observe import observe_ranges
from training.quantise_ranges import ObservedImages, frames_digest
from training.quantise_trainer import RANGES_NAME, QuantisedTrainer
from training.run_folder import check_run_folder, provenance
from training.schedule import TrainOptions
from training.settings import train_settings
from training.tasks import JointTask
from training.validation import validate

DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "conveyor.pt"
WARMUP_SHARE = 0.1  # of the steps, in which the learning rate rises


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults fine-tune the demo's weights."""
    parser = command_parser(__doc__)
    parser.add_argument("--weights", type=Path, help="checkpoint to begin with (default: assets/conveyor.pt)")
    data = parser.add_argument_group("data")
    add_data_arguments(data)
    parser.set_defaults(count=2400)
    data.add_argument("--observe", type=int, default=64, help="training images that the first ranges are observed on")
    train = parser.add_argument_group("fine-tuning")
    train.add_argument("--output", type=Path, default=Path("runs/qat"), help="run folder")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's last.pt")
    train.add_argument("--steps", type=int, default=300, help="optimizer steps, rounded up to whole rounds")
    train.add_argument("--rounds", type=int, default=3, help="AP is measured this many times on the way")
    train.add_argument("--batch-size", type=int, default=8)
    train.add_argument("--learning-rate", type=float, default=2e-5, help="of the weights; ranges learn at 100 times it")
    train.add_argument("--rois-per-image", type=int, default=64, help="proposals per image to train the detector on")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=1, help="processes that read and augment images")
    train.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    options, steps_per_round = fine_tuning_options(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    check_run_folder(arguments.output, arguments.resume)
    arguments.weights = arguments.weights or DEMO_WEIGHTS
    model, spec = load_checkpoint(arguments.weights)
    samples = training_samples(arguments, spec)
    validation = validation_data(arguments, spec.class_names)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    move_batch_norms_into_kernels(model)
    fp32_ap = None if arguments.resume else validate(model, validation)["ap"]
    quantised, images = quantise(model, samples, count=arguments.observe, seed=options.seed)
    print(f"{spec.architecture}: {len(quantised.shared)} layers in INT8, ranges of {images.count} images, {device}")
    trainer = QuantisedTrainer(
        quantised=quantised,
        images=images,
        steps_per_round=steps_per_round,
        model=model,
        spec=spec,
        samples=samples,
        validate=lambda model: validate(model, validation),
        options=options,
        task=JointTask(train_settings(arguments)),
        folder=arguments.output,
        device=device,
        notes=provenance("training/quantise.py", argv, device, arguments.weights.name),
    )
    if fp32_ap is None:
        trainer.resume()
    else:
        trainer.begin(fp32_ap)
    print("AP before: {fp32:.3f} in FP32, {int8:.3f} in INT8".format(**trainer.start_ap), flush=True)
    trainer.fit()
    print(summary(trainer))
    return 0


def fine_tuning_options(arguments: argparse.Namespace) -> tuple[TrainOptions, int]:
    """How to train, and the steps of a round.

    Raises:
        UserError: a number that must be above zero is not.
    """
    for name in ("steps", "rounds", "observe", "count", "rois_per_image"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected 1 or more.")
    rounds = min(arguments.rounds, arguments.steps)
    steps_per_round = math.ceil(arguments.steps / rounds)
    options = TrainOptions(
        epochs=rounds,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=0.0,
        warmup_steps=math.ceil(WARMUP_SHARE * rounds * steps_per_round),
        seed=arguments.seed,
        workers=arguments.workers,
        precision="float32",  # INT8's rounding of numbers that float16 has rounded before is another one
    )
    return options, steps_per_round


def training_samples(arguments: argparse.Namespace, spec: DetectorSpec) -> Any:
    """The data set.

    Raises:
        AnnotationError: its classes are not the checkpoint's, or it cannot be used.
        UserError: the checkpoint does not have the generated images' classes.
    """
    if arguments.data != "conveyor":
        return samples_of(arguments, spec.class_names)[0]
    if spec.class_names != CLASS_NAMES:
        raise UserError(
            f"{arguments.weights} detects {', '.join(spec.class_names[:3])}, ..., not the parts of the generated "
            "images: give --data and --val with its classes."
        )
    return samples_of(arguments)[0]


def quantise(model: FasterRcnn, samples: Any, *, count: int, seed: int) -> tuple[FakeQuantisation, ObservedImages]:
    """Observe the first ranges on `count` of the samples, or all if they are fewer, and fake-quantise the model."""
    chosen = np.random.default_rng(seed).permutation(len(samples))[:count]
    frames = [samples[int(index)].frame for index in progress(chosen, len(chosen), "reading images")]
    device = next(model.parameters()).device

    def pictures() -> Iterator[tuple[Tensor, Tensor]]:
        for frame in progress(frames, len(frames), "observing ranges"):
            images, im_info = preprocess([frame], model.spec)
            yield torch.from_numpy(images).to(device), torch.from_numpy(im_info).to(device)

    observed = observe_ranges(model, pictures())
    return FakeQuantisation(model, observed), ObservedImages(len(frames), frames_digest(frames))


def summary(trainer: QuantisedTrainer) -> str:
    """The last lines: what was gained, and what to do with it."""
    best, before = trainer.best_ap, trainer.start_ap
    gained = f"AP {best:.3f} in INT8 after fine-tuning, {before['int8']:.3f} before it, {before['fp32']:.3f} in FP32"
    if best <= before["int8"]:
        gained += "; it gained nothing, and best.pt has the weights of the start"
    best_path, ranges = trainer.folder / "best.pt", trainer.folder / RANGES_NAME
    export = f"python export/to_onnx.py --weights {best_path} --output qat.onnx"
    return f"{gained}\n{export}\npython calib/calibrate.py --onnx qat.onnx --precision int8 --ranges {ranges}"


if __name__ == "__main__":
    sys.exit(run_command(main))
