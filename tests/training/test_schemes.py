"""Schemes of training: which step trains what, what the steps share, and that interruptions leave no trace."""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.dataset import write_dataset
from runtime.errors import ArtifactError, UserError
from training import curves, train
from training.checkpoint import load_checkpoint, read_checkpoint
from training.data.conveyor import ConveyorDataset
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.schedule import TrainOptions
from training.schemes import SCHEMES, SchemeRun, check_scheme_folder, train_scheme
from training.settings import TrainSettings

SETTINGS = TrainSettings(rpn_pre_nms_top_n=60, rpn_post_nms_top_n=30, rpn_batch_per_image=32, box_batch_per_image=16)
SPEC = spec_for("conveyor_c4", class_names=CLASS_NAMES, input={"min_size": 64, "max_size": 96})
PICTURES = 4  # of a step: two batches of two

# step: the one it begins with (None: initial weights), the parts that change
ALTERNATING = {
    "1-rpn": (None, ("backbone.", "rpn.")),
    "2-detector": (None, ("backbone.", "roi_heads.")),
    "3-rpn": ("2-detector", ("rpn.",)),
    "4-detector": ("3-rpn", ("roi_heads.",)),
}
STAGED = {
    "1-rpn": (None, ("backbone.", "rpn.")),
    "2-detector": ("1-rpn", ("roi_heads.",)),
    "3-joint": ("2-detector", ("backbone.", "rpn.", "roi_heads.")),
}
FROZEN = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")  # --frozen-stages 2


@pytest.fixture(scope="module", autouse=True)
def _without_curves():
    """Drawing them takes longer than the training here; test_trainer.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "write_curves", lambda *_: None)
        yield


@functools.cache
def picture(index: int):
    return ConveyorDataset(PICTURES, seed=3)[index]


class Pictures:
    """Raise an error when the `stop_at`-th one is asked for: Ctrl-C, or that more were asked for than should be."""

    class_names = CLASS_NAMES

    def __init__(self, stop_at: int | None = None, error: type[BaseException] = AssertionError) -> None:
        self.left = stop_at
        self.error = error

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, index: int):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error("one picture more")
        return picture(index)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_detector(SPEC)


def make_run(model, folder: Path, *, stop_at: int | None = None, frozen_stages: int = 0, log=None, **options):
    log = [] if log is None else log
    values = {"epochs": 1, "batch_size": 2, "workers": 0, "optimizer": "sgd", "learning_rate": 1e-2, "seed": 1}

    def measure(name: str):
        def measured(network) -> dict[str, float]:
            log.append((name, type(network).__name__))
            return {name: 0.5}

        return measured

    return SchemeRun(
        model=model,
        samples=Pictures(stop_at),
        validate=measure("ap"),
        recall=measure("recall"),
        options=TrainOptions(**{**values, **options}),
        settings=SETTINGS,
        frozen_stages=frozen_stages,
        folder=folder,
        device=torch.device("cpu"),
        notes={"command": "test"},
    )


def weights(path: Path) -> dict[str, Tensor]:
    return read_checkpoint(path)["model"]


def changed_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def alternated(model, tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """A whole run in four steps, and what was measured on the way."""
    folder, log = tmp_path_factory.mktemp("alternated") / "run", []
    train_scheme("alternating", make_run(model, folder, log=log), resume=False)
    return folder, log


def check_steps(folder: Path, initial: dict[str, Tensor], table: dict, frozen: tuple[str, ...] = ()) -> None:
    """Each step changed all weights and batch-norm statistics of its parts, and no bit of any other."""
    for step, (origin, parts) in table.items():
        before = initial if origin is None else weights(folder / origin / "last.pt")
        expected = {name for name in before if name.startswith(parts) and not name.startswith(frozen or "-")}
        assert changed_names(before, weights(folder / step / "last.pt")) == expected, step


def test_each_of_the_four_steps_trains_its_parts(model, alternated):
    check_steps(alternated[0], model.state_dict(), ALTERNATING)


def test_both_networks_share_their_layers_to_the_last_bit(alternated):
    folder, _ = alternated
    detector, proposer, shared = (weights(folder / name / "last.pt") for name in ("4-detector", "3-rpn", "2-detector"))
    result, best = weights(folder / "last.pt"), weights(folder / "best.pt")
    names = [name for name in result if name.startswith("backbone.")]
    assert any(name.endswith("running_mean") for name in names)
    for name in names:
        assert torch.equal(detector[name], proposer[name]), name
        assert torch.equal(detector[name], shared[name]), name
        assert torch.equal(detector[name], result[name]), name
    for name, value in result.items():
        origin = proposer if name.startswith("rpn.") else detector
        assert torch.equal(value, origin[name]), name
        assert torch.equal(best[name], value.half() if value.is_floating_point() and value.dim() >= 2 else value), name


def test_the_first_two_steps_share_no_layers(alternated):
    folder, _ = alternated
    first, second = (weights(folder / name / "last.pt") for name in ("1-rpn", "2-detector"))
    names = {name for name in first if name.startswith("backbone.") and not name.endswith("num_batches_tracked")}
    assert names <= changed_names(first, second)


def test_the_steps_are_measured_by_what_they_make(alternated):
    folder, log = alternated
    assert log == [
        ("recall", "FasterRcnn"),
        ("ap", "UnsharedDetector"),  # with the proposals of step 1
        ("recall", "FasterRcnn"),
        ("ap", "FasterRcnn"),
    ]
    notes = read_checkpoint(folder / "best.pt")["notes"]
    assert (notes["scheme"], notes["step"], notes["ap"]) == ("alternating", "4-detector", "0.5000")
    network, spec = load_checkpoint(folder / "best.pt")
    assert spec == SPEC
    assert int(network(torch.zeros(1, 3, 64, 96), torch.tensor([[64.0, 96.0, 1.0, 1.0]]))[0]) >= 0


def same_weights(path: Path, other: Path) -> None:
    assert changed_names(weights(path), weights(other)) == set()


@pytest.mark.parametrize("stop_at", [PICTURES + 2, PICTURES], ids=["inside step 2", "at the start of step 2"])
def test_an_interrupted_run_goes_on_to_the_same_weights(model, alternated, tmp_path, stop_at):
    run = dataclasses.replace(make_run(model, tmp_path), samples=Pictures(stop_at, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_scheme("alternating", run, resume=False)
    position = read_checkpoint(tmp_path / "2-detector" / "last.pt")["training"]
    assert (position["epoch"], position["step"]) == (0, (stop_at - PICTURES) // 2)
    assert not (tmp_path / "best.pt").exists()
    log: list = []
    left = 4 * PICTURES - stop_at
    train_scheme("alternating", make_run(model, tmp_path, stop_at=left, log=log), resume=True)
    assert [name for name, _ in log] == ["ap", "recall", "ap"]  # step 1 was done
    same_weights(tmp_path / "last.pt", alternated[0] / "last.pt")
    same_weights(tmp_path / "best.pt", alternated[0] / "best.pt")


def test_a_run_killed_between_steps_goes_on_to_the_same_weights(model, alternated, tmp_path):
    for step in ("1-rpn", "2-detector", "3-rpn"):
        shutil.copytree(alternated[0] / step, tmp_path / step)
    train_scheme("alternating", make_run(model, tmp_path, stop_at=PICTURES), resume=True)  # no more than one step
    same_weights(tmp_path / "last.pt", alternated[0] / "last.pt")


def test_a_finished_run_resumes_to_nothing(model, alternated, tmp_path):
    shutil.copytree(alternated[0], tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    assert train_scheme("alternating", make_run(model, tmp_path / "run", stop_at=0), resume=True) == 0.5
    same_weights(tmp_path / "run" / "best.pt", alternated[0] / "best.pt")


def test_averaged_weights_are_shared_to_the_last_bit_too(model, tmp_path):
    train_scheme("alternating", make_run(model, tmp_path, ema=0.5), resume=False)
    content = read_checkpoint(tmp_path / "2-detector" / "last.pt")
    own, averaged = content["model"], content["training"]["averaged"]["averages"]
    result, best = weights(tmp_path / "last.pt"), weights(tmp_path / "best.pt")
    for name in (name for name in result if name.startswith("backbone.")):
        assert torch.equal(result[name], averaged[name]), name
        assert torch.equal(best[name].float(), averaged[name].to(best[name].dtype).float()), name
    assert "backbone.body.conv1.weight" in changed_names(own, averaged)


def test_staged_training_warms_up_what_is_then_trained_jointly(model, tmp_path):
    log: list = []
    train_scheme("staged", make_run(model, tmp_path, frozen_stages=2, log=log), resume=False)
    check_steps(tmp_path, model.state_dict(), STAGED, frozen=FROZEN)
    same_weights(tmp_path / "last.pt", tmp_path / "3-joint" / "last.pt")
    assert log == [("recall", "FasterRcnn"), ("ap", "FasterRcnn"), ("ap", "FasterRcnn")]


def test_joint_training_keeps_one_folder_and_its_frozen_stages(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    train_scheme("joint", make_run(model, tmp_path, frozen_stages=2), resume=False)
    after = weights(tmp_path / "last.pt")
    assert changed_names(before, after) == {name for name in after if not name.startswith(FROZEN)}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert read_checkpoint(tmp_path / "last.pt")["training"]["epoch"] == 1
    assert changed_names(before, model.state_dict()) == set()  # the initial weights are there for every step
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_resuming_what_is_not_there_or_longer_is_refused(model, alternated, tmp_path):
    with pytest.raises(ArtifactError, match=r"1-rpn/last\.pt is not there"):
        train_scheme("alternating", make_run(model, tmp_path), resume=True)
    with pytest.raises(UserError, match="1-rpn has 1 of 2 epochs, but 2-detector began with its weights"):
        train_scheme("alternating", make_run(model, alternated[0], epochs=2), resume=True)


def test_a_run_is_not_mixed_with_another(alternated, tmp_path):
    shutil.copytree(alternated[0] / "1-rpn", tmp_path / "1-rpn")
    for scheme in ("alternating", "staged"):
        with pytest.raises(UserError, match="1-rpn holds an earlier run"):
            check_scheme_folder(tmp_path, scheme, resume=False)
    check_scheme_folder(tmp_path, "alternating", resume=True)
    with pytest.raises(UserError, match="was trained by --scheme alternating"):
        check_scheme_folder(tmp_path, "staged", resume=True)


def test_too_many_frozen_stages_are_refused_before_training(model, tmp_path):
    with pytest.raises(UserError, match="--frozen-stages is 9"):
        train_scheme("alternating", make_run(model, tmp_path, stop_at=0, frozen_stages=9), resume=False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_is_one_command(tmp_path_factory, tmp_path, capsys, scheme):
    data = write_dataset(tmp_path_factory.getbasetemp() / "schemes" / "data", 2, 11, size_hw=(64, 96), workers=1)
    command = ["--data", str(data), "--val", str(data), "--output", str(tmp_path / "run"), "--scheme", scheme]
    command += ["--architecture", "conveyor_c4", "--set", "input.min_size=64", "--set", "input.max_size=96"]
    command += ["--batch-size", "2", "--epochs", "1", "--workers", "0", "--optimizer", "sgd", "--rois-per-image", "8"]
    assert train.main(command) == 0
    assert f"--weights {tmp_path / 'run' / 'best.pt'}" in capsys.readouterr().out
    load_checkpoint(tmp_path / "run" / "best.pt")
    with pytest.raises(UserError, match="holds an earlier run"):
        train.main(command)
