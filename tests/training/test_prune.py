"""The pruning command: what it writes down, that a run goes on, and what it refuses."""

from __future__ import annotations

import json

import pytest

from runtime.errors import ArtifactError, EdgeRcnnError, UserError
from tests.training.test_trainer import SMALL, CountingSamples
from training import prune
from training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.models.widths import layer_widths
from training.prune_cost import Cost
from training.prune_report import PruneReport, read_report, write_report
from training.quantise_ranges import weights_digest

SPEC = spec_for("conveyor", class_names=CountingSamples.class_names, **SMALL, backbone={"fpn_channels": 32})
COSTS = [Cost((96, 128), 2_000_000, 3_000_000_000, 12.345), Cost((96, 128), 1_000_000, 1_000_000_000, 6.5)]


@pytest.fixture(scope="module")
def weights(write_weights):
    return write_weights(SPEC, "whole.pt")


def command(data, weights, output) -> list[str]:
    words = ["--weights", str(weights), "--data", str(data), "--val", str(data), "--output", str(output)]
    return [*words, "--ratio", "0.5", "--batch-size", "2", "--epochs", "1", "--workers", "0", "--no-tensorboard"]


def test_the_command_prunes_trains_and_goes_on(data, weights, tmp_path, capsys):
    folder = tmp_path / "run"
    words = command(data, weights, folder)
    assert prune.main(words) == 0
    printed = capsys.readouterr().out
    assert "multiply-accumulates at 96x128" in printed
    assert f"python export/to_onnx.py --weights {folder / 'best.pt'}" in printed
    model, spec = load_checkpoint(folder / "best.pt")
    whole, _ = load_checkpoint(weights)
    assert spec.parent_digest == SPEC.digest()
    assert spec.backbone.fpn_channels == 16
    assert set(spec.pruned_widths) <= set(layer_widths(model))
    report = json.loads((folder / "pruning.json").read_text())
    assert report["before"]["parameters"] == sum(value.numel() for value in whole.parameters())
    assert report["after"]["parameters"] == sum(value.numel() for value in model.parameters())
    assert report["after"]["macs"] < 0.5 * report["before"]["macs"]
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert report["fine_tuned_ap"] == pytest.approx(max(epoch["ap"] for epoch in epochs), abs=1e-4)
    assert report["start"] == {
        "weights": weights_digest(whole.state_dict()),
        "ratio": 0.5,
        "importance": "l2",
        "round_to": 8,
        "from_scratch": False,
    }
    times = (report["before"]["cpu_ms"], report["after"]["cpu_ms"])
    assert prune.main([*words, "--resume", "--epochs", "2"]) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    report = read_report(folder)
    assert (report.before.cpu_ms, report.after.cpu_ms) == times  # not measured again
    with pytest.raises(UserError, match="began with other weights or another pruning"):
        prune.main([*words, "--resume", "--importance", "l1"])
    with pytest.raises(UserError, match="holds an earlier run"):
        prune.main(words)


def test_from_scratch_keeps_the_widths_but_not_the_weights(data, weights, tmp_path, monkeypatch):
    begun = []

    class Seen(prune.Trainer):
        def fit(self) -> None:
            begun.append({name: value.clone() for name, value in self.model.state_dict().items()})
            self.save_last()

    monkeypatch.setattr(prune, "Trainer", Seen)
    monkeypatch.setattr(prune, "measured_costs", lambda models: COSTS)
    assert prune.main(command(data, weights, tmp_path / "pruned")) == 0
    assert prune.main([*command(data, weights, tmp_path / "scratch"), "--from-scratch"]) == 0
    kept, fresh = begun
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in fresh.items()}
    whole = load_checkpoint(weights)[0].state_dict()
    name = "rpn.head.conv.0.0.weight"
    in_whole = {round(value, 7) for value in whole[name].flatten().tolist()}
    assert {round(value, 7) for value in kept[name].flatten().tolist()} <= in_whole
    assert not {round(value, 7) for value in fresh[name].flatten().tolist()[:50]} <= in_whole
    notes = [read_checkpoint(tmp_path / run / "last.pt")["notes"]["initial_weights"] for run in ("pruned", "scratch")]
    assert notes == ["whole.pt, pruned by 0.5", "random"]


BAD_COMMANDS = [  # arguments, the words of the sentence
    (["--ratio", "1"], "--ratio is 1.0: expected a number above 0 and below 1"),
    (["--ratio", "0"], "--ratio is 0.0"),
    (["--round-to", "0"], "--round-to is 0"),
    (["--epochs", "0"], "--epochs is 0"),
    (["--weights", "nowhere.pt"], "nowhere.pt is not there"),
    (["--data", "nowhere.json"], "nowhere.json"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_COMMANDS)
def test_bad_arguments_get_one_sentence(data, weights, tmp_path, arguments, words):
    with pytest.raises(EdgeRcnnError, match=words) as caught:
        prune.main([*command(data, weights, tmp_path / "run"), *arguments])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "best.pt").exists()


def test_data_of_other_classes_are_refused(data, tmp_path):
    spec = spec_for("conveyor", class_names=("cat", "dog"), **SMALL)
    save_checkpoint(tmp_path / "pets.pt", build_detector(spec), spec)
    with pytest.raises(UserError, match=r"detects cat, dog, \.\.\. \(2\), the data have"):
        prune.main(command(data, tmp_path / "pets.pt", tmp_path / "run"))


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = PruneReport.measured({"ratio": 0.5}, COSTS, [0.81234, 0.1])
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert (report.before.cpu_ms, report.before.ap, report.after.ap) == (12.35, 0.8123, 0.1)
    lines = report.fine_tuned(0.7).table().splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [
        ["2.00", "1.00"],
        ["3.00", "1.00"],
        ["12.3", "6.5"],
        ["0.812", "0.100"],
        ["-", "0.700"],
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"before": 1, "after": 2, "network_hw": [1, 2]}', '{"network_hw": 3}']
)
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "pruning.json").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read as the report of a pruning"):
        read_report(tmp_path)
    (tmp_path / "pruning.json").unlink()
    with pytest.raises(ArtifactError, match="cannot be read as the report of a pruning"):
        read_report(tmp_path)
