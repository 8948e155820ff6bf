"""Fine-tuning with INT8's rounding: it mends what rounding harms, resumes exactly, and its files fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from onnx import helper

from calib.convert import INT8, Calibration, convert, read_source
from calib.learned import read_learned_ranges
from export.canvas import choose_canvas, spec_with_canvas
from export.graph import build_graph
from runtime.errors import ArtifactError, EdgeRcnnError, UserError
from tests.training.test_trainer import SETTINGS, SMALL, CountingSamples
from training import quantise
from training.checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from training.data.batch import to_batch
from training.fake_quantise import FakeQuantisation, quantised_layers
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.quantise_fold import move_batch_norms_into_kernels
from training.quantise_observe import observe_ranges
from training.quantise_ranges import ObservedImages, frames_digest, weights_digest
from training.quantise_trainer import RANGE_RATE, QuantisedTrainer
from training.schedule import TrainOptions
from training.tasks import JointTask
from training.trainer import Trainer

SPEC = spec_for("conveyor", class_names=CountingSamples.class_names, **SMALL)
IMAGES = ObservedImages(2, "0" * 64)


def quantised_detector():
    """A detector with random weights, and its ranges over two pictures."""
    torch.manual_seed(0)
    model = build_detector(SPEC)
    move_batch_norms_into_kernels(model)
    batches = (to_batch([CountingSamples(2)[index]], SPEC) for index in range(2))
    observed = observe_ranges(model, ((batch.images, batch.im_info) for batch in batches))
    return model, FakeQuantisation(model, observed)


def make_trainer(
    folder: Path, samples, *, model=None, quantised=None, spec=SPEC, steps_per_round: int = 3, aps=(), **options
):
    if model is None:
        model, quantised = quantised_detector()
    aps = iter(aps)
    values = {"epochs": 2, "batch_size": 2, "warmup_steps": 1, "workers": 0, "learning_rate": 1e-3, "seed": 1}
    return QuantisedTrainer(
        quantised=quantised,
        images=IMAGES,
        steps_per_round=steps_per_round,
        model=model,
        spec=spec,
        samples=samples,
        validate=lambda model: {"ap": next(aps, 0.5), "ap50": 0.6},
        options=TrainOptions(**{**values, **options}),
        task=JointTask(SETTINGS),
        folder=folder,
        device=torch.device("cpu"),
        notes={"command": "test"},
    )


def test_an_interrupted_run_goes_on_to_the_same_weights_and_ranges(tmp_path):
    whole = make_trainer(tmp_path / "whole", CountingSamples(4), steps_per_round=2)
    whole.begin(0.9)
    whole.fit()
    interrupted = make_trainer(tmp_path / "parts", CountingSamples(4, stop_at=4 + 3), steps_per_round=2)
    interrupted.begin(0.9)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    assert (interrupted.epoch, interrupted.step) == (1, 1)  # in the second round
    resumed = make_trainer(tmp_path / "parts", CountingSamples(4), steps_per_round=2)
    resumed.resume()
    assert resumed.start_ap == {"fp32": 0.9, "int8": 0.5}
    resumed.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    start = quantised_detector()[1].ranges()
    assert resumed.quantised.ranges() == whole.quantised.ranges()
    assert sum(whole.quantised.ranges()[name] != amax for name, amax in start.items()) > 40  # of 48: they learn too


def test_fine_tuning_mends_what_four_bits_harm(tmp_path):
    """The demo's weights on pictures of half the size: a few steps undo most of the harm."""
    spec = spec_for("conveyor", class_names=SPEC.class_names, input={"min_size": 144, "max_size": 192})
    model = build_detector(spec)
    load_weights(model, read_checkpoint(quantise.DEMO_WEIGHTS)["model"], quantise.DEMO_WEIGHTS)
    move_batch_norms_into_kernels(model)
    samples = CountingSamples(2)
    batch = to_batch([samples[0], samples[1]], spec)

    def loss() -> float:
        """Of ten draws of anchors and rois: of one it says more about the draw than about the weights."""
        torch.manual_seed(3)
        with torch.no_grad():
            draws = [sum(model.losses(batch.images, batch.im_info, batch.targets, SETTINGS)) for _ in range(10)]
        return float(torch.stack(draws).mean())

    exact = loss()
    quantised = FakeQuantisation(model, observe_ranges(model, [(batch.images[:1], batch.im_info[:1])]), bits=4)
    harmed = loss()
    options = {"steps_per_round": 12, "epochs": 1, "learning_rate": 1e-4}
    make_trainer(tmp_path, samples, model=model, quantised=quantised, spec=spec, **options).fit()
    assert harmed > 1.2 * exact
    assert loss() < exact + 0.3 * (harmed - exact)


def test_rounds_run_through_the_data_as_often_as_they_need(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(5), steps_per_round=3, batch_size=2)  # two steps in a lap
    first, second = trainer._batches(0), trainer._batches(1)
    assert [[draw for _, draw in batch] for batch in first + second] == [[0] * 2] * 2 + [[1] * 2] * 2 + [[2] * 2] * 2
    assert trainer.steps_per_epoch == 3
    ranges = trainer.optimizer.param_groups[-1]
    trainer._train_step(to_batch([CountingSamples(2)[0]], SPEC))
    assert ranges["lr"] == RANGE_RATE * trainer.optimizer.param_groups[0]["lr"]


def test_best_files_are_those_of_the_best_round_in_full_precision(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), steps_per_round=1, epochs=2, aps=[0.3, 0.7, 0.6])
    trainer.begin(0.8)
    start = json.loads((tmp_path / "ranges.json").read_text())
    assert start["weights_digest"] == weights_digest(load_checkpoint(tmp_path / "best.pt")[0].state_dict())
    trainer.fit()
    best = read_checkpoint(tmp_path / "best.pt")
    ranges = json.loads((tmp_path / "ranges.json").read_text())
    assert best["notes"]["epoch"] == "1"
    assert (best["notes"]["fp32_ap_before"], best["notes"]["int8_ap_before"]) == ("0.8000", "0.3000")
    assert best["model"]["roi_heads.box_head.fc6.weight"].dtype == torch.float32
    assert ranges.pop("layers").keys() == quantised_layers(build_detector(SPEC)).keys()
    assert ranges == {
        "format": "edgercnn.ranges",
        "version": 1,
        "spec_digest": SPEC.digest(),
        "weights_digest": weights_digest(best["model"]),
        "method": "learned",
        "images": 2,
        "images_digest": "0" * 64,
    }
    assert ranges["weights_digest"] not in (start["weights_digest"], weights_digest(trainer.model.state_dict()))


def test_digests_change_with_what_they_are_of():
    weights = {"b": torch.zeros(2, 3), "a": torch.ones(2)}
    assert weights_digest(weights) == weights_digest(dict(reversed(weights.items())))
    others = [
        {**weights, "b": torch.zeros(3, 2)},
        {**weights, "a": torch.ones(2).half()},
        {"c": weights["a"], **weights},
    ]
    assert len({weights_digest(entry) for entry in [weights, *others]}) == 4
    frames = [CountingSamples(2)[index].frame for index in range(2)]
    assert frames_digest(frames) != frames_digest(frames[::-1])


def test_the_int8_file_computes_what_the_fake_quantised_model_does(tmp_path):
    """The whole way: checkpoint and ranges -> exported graph -> Q/DQ -> ONNX Runtime, without its own rewriting."""
    detector = build_detector(SPEC)  # random weights would carry one number tipped over a step through all layers
    load_weights(detector, read_checkpoint(quantise.DEMO_WEIGHTS)["model"], quantise.DEMO_WEIGHTS)
    move_batch_norms_into_kernels(detector)
    batch = to_batch([CountingSamples(1)[0]], SPEC)
    quantised = FakeQuantisation(detector, observe_ranges(detector, [(batch.images, batch.im_info)]))
    trainer = make_trainer(tmp_path, CountingSamples(2), model=detector, quantised=quantised)
    trainer.begin(0.8)
    layers = json.loads((tmp_path / "ranges.json").read_text())["layers"]
    model, spec = load_checkpoint(tmp_path / "best.pt")
    exported = build_graph(model, spec_with_canvas(spec, choose_canvas(spec.input, None)), batch=1).model
    nodes = {node.name for node in exported.graph.node}
    assert all(f"{name}/Conv" in nodes or f"{name}/Gemm" in nodes for name in layers)
    assert sum(node.op_type == "Conv" for node in exported.graph.node) > len(
        layers
    )  # squeeze-and-excitation, the last layers
    source = read_source(exported)
    learned = read_learned_ranges(tmp_path / "ranges.json")
    calibration = Calibration(learned.ranges(source), None, "learned", learned.images, learned.images_digest)
    int8 = convert(source, dict.fromkeys(source.names, INT8), INT8, calibration)
    names = [f"backbone/fpn/layer_blocks/{level}/0/Conv" for level in range(3)]
    int8.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would round biases too
    session = onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = session.run(names, {"images": batch.images.numpy(), "im_info": batch.im_info.numpy()})
    with torch.no_grad():
        expected = trainer.model.eval().backbone(batch.images)[:3]  # the pooled level is no convolution
    for one, other in zip(got, expected, strict=True):
        error = torch.from_numpy(one) - other
        assert error.square().mean().sqrt() < 0.01 * other.std()  # 1e-7, unless a sum's order tips a number over a step


def test_resume_refuses_what_began_otherwise(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2))
    trainer.save_last()
    other_steps = make_trainer(tmp_path, CountingSamples(2), steps_per_round=5)
    with pytest.raises(UserError, match="rounds of 3 steps, not 5"):
        other_steps.resume()
    other_images = make_trainer(tmp_path, CountingSamples(2))
    other_images.start["images"] = "1" * 64
    with pytest.raises(UserError, match="began with other weights or images"):
        other_images.resume()
    position = Trainer._position(trainer)
    save_checkpoint(tmp_path / "last.pt", trainer.model, SPEC, training_state=position)
    with pytest.raises(UserError, match="not quantised"):
        trainer.resume()


@pytest.fixture(scope="module")
def weights(write_weights):
    return write_weights(SPEC, "tiny.pt", half=True)


def test_the_command_measures_before_and_after_and_goes_on(data, weights, tmp_path, capsys):
    words = ["--weights", str(weights), "--data", str(data), "--val", str(data), "--output", str(tmp_path / "qat")]
    words += ["--steps", "3", "--rounds", "2", "--batch-size", "2", "--observe", "3", "--workers", "0"]
    assert quantise.main(words) == 0
    printed = capsys.readouterr().out
    assert "48 layers in INT8, ranges of 3 images" in printed
    assert "in FP32, 0.000 in INT8" in printed
    assert f"--ranges {tmp_path / 'qat' / 'ranges.json'}" in printed
    assert len((tmp_path / "qat" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "qat" / "curves.png").stat().st_size > 1000
    assert json.loads((tmp_path / "qat" / "ranges.json").read_text())["images"] == 3
    assert read_checkpoint(tmp_path / "qat" / "best.pt")["notes"]["initial_weights"] == "tiny.pt"
    with pytest.raises(UserError, match="holds an earlier run"):
        quantise.main(words)
    assert quantise.main([*words, "--resume"]) == 0  # nothing is left to do
    with pytest.raises(UserError, match="began with other weights or images"):
        quantise.main([*words, "--resume", "--observe", "2"])


BAD_COMMANDS = [  # arguments, the words of the sentence
    (["--steps", "0"], "--steps is 0"),
    (["--observe", "-1"], "--observe is -1"),
    (["--learning-rate", "0"], "--learning-rate is 0"),
    (["--weights", "nowhere.pt"], "nowhere.pt is not there"),
    (["--data", "nowhere.json"], "nowhere.json"),
    (["--resume"], "last.pt is not there"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_COMMANDS)
def test_bad_arguments_get_one_sentence(data, weights, tmp_path, arguments, words):
    command = ["--weights", str(weights), "--data", str(data), "--val", str(data), "--output", str(tmp_path / "run")]
    with pytest.raises(EdgeRcnnError, match=words) as caught:
        quantise.main([*command, *arguments])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "best.pt").exists()


def test_weights_of_other_classes_need_data_of_their_own(data, tmp_path):
    spec = spec_for("conveyor", class_names=("cat", "dog"), **SMALL)
    save_checkpoint(tmp_path / "pets.pt", build_detector(spec), spec)
    words = ["--weights", str(tmp_path / "pets.pt"), "--output", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"detects cat, dog, \.\.\., not the parts"):
        quantise.main(words)
    with pytest.raises(UserError, match="has the classes"):
        quantise.main([*words, "--data", str(data), "--val", str(data)])


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(ArtifactError, match="cannot be read as a checkpoint"):
        quantise.main(["--weights", str(tmp_path / "noise.pt"), "--output", str(tmp_path / "run")])
