"""Train a small detector that also learns from a larger one: knowledge distillation.

    python training/train.py --architecture conveyor_resnet50 --output runs/teacher
    python training/distill.py --teacher runs/teacher/best.pt --architecture conveyor --output runs/student
    python training/distill.py --teacher runs/teacher/best.pt --student runs/pruned/best.pt --output runs/pruned-taught
    python training/distill.py --teacher runs/teacher/best.pt --output runs/student --resume

The student gets its joint losses and, weighted, its distance from the teacher: features near objects, the RPN's
objectness and boxes, the class probabilities of the sampled rois, and box errors above the teacher's. The teacher needs
the student's classes and network input, and its anchors unless --distill-rpn is 0. best.pt is the student alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from runtime.command import command_parser, run_command
from runtime.errors import UserError
from training.arguments import add_training_arguments
from training.checkpoint import load_checkpoint
from training.data.classes import check_classes
from training.data.sources import add_data_arguments, training_samples, validation_data
from training.distill_settings import add_distill_arguments, distill_settings
from training.distill_task import DistillTask
from training.distill_trainer import DistillTrainer
from training.distributed import joined
from training.initial_weights import adapt_to_settings, add_weight_arguments, foreign_spec, set_initial_weights
from training.models.arguments import add_model_arguments, spec_of
from training.models.detectors import FasterRcnn, build_detector
from training.run_folder import check_run_folder, provenance, record_run
from training.schedule import train_options
from training.settings import TrainSettings, train_settings
from training.validation import validate


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    add_data_arguments(parser.add_argument_group("data"))
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument("--teacher", type=Path, required=True, help="checkpoint to learn from")
    add_distill_arguments(teacher)
    model = parser.add_argument_group("student")
    model.add_argument(
        "--student", type=Path, help="start from this checkpoint and its spec, a pruned one for instance"
    )
    add_model_arguments(model)
    add_weight_arguments(model)
    add_training_arguments(parser, "runs/student")
    return parser


@joined
def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    options, rule = train_options(arguments), distill_settings(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    check_run_folder(arguments.output, arguments.resume)
    teacher, _ = load_checkpoint(arguments.teacher)
    samples, class_names = training_samples(arguments)
    validation = validation_data(arguments, class_names)
    torch.manual_seed(options.seed)
    settings = train_settings(arguments)
    model, initial_weights = student_of(arguments, class_names, settings)
    task = DistillTask(settings=settings, rule=rule, student=model, teacher=teacher)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = DistillTrainer(
        model=model,
        spec=model.spec,
        samples=samples,
        validate=lambda model: validate(model, validation),
        options=options,
        task=task,
        folder=arguments.output,
        device=device,
        notes=provenance("training/distill.py", argv, device, initial_weights),
    )
    if arguments.resume:
        trainer.resume()
    record_run(arguments.output, arguments, model.spec, trainer.notes)
    print(
        f"training {model.spec.architecture} with {teacher.spec.architecture} as its teacher: {len(samples)} images, "
        f"{len(class_names)} classes, {device}, {arguments.output}"
    )
    trainer.fit()
    print(f"best AP {trainer.best_ap:.3f}: python export/to_onnx.py --weights {arguments.output / 'best.pt'}")
    return 0


def student_of(
    arguments: argparse.Namespace, class_names: Sequence[str], settings: TrainSettings
) -> tuple[FasterRcnn, str]:
    """The student, made for `settings`, and where its first weights come from, for the checkpoint's notes.

    Raises:
        UserError: --student together with other weights, or a --student of other classes than the data's.
    """
    if arguments.student is None:
        model = build_detector(spec_of(arguments, class_names, foreign_spec(arguments, class_names)))
        adapt_to_settings(model, settings)
        return model, set_initial_weights(model, arguments)
    if arguments.weights is not None or arguments.backbone_weights is not None:
        raise UserError("--student brings its weights: leave --weights and --backbone-weights out.")
    model, spec = load_checkpoint(arguments.student)
    check_classes(spec.class_names, class_names, arguments.student)
    return model, str(arguments.student)


if __name__ == "__main__":
    sys.exit(run_command(main))
