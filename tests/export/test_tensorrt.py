"""The exported file as it is, bodies kept, becomes a TensorRT-RTX plan on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

# in a process of its own: TensorRT keeps the first logger of a process for good, and a failed build may abort
BUILD = """
import json, sys
import tensorrt_rtx as trt
builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
network = builder.create_network(0)
parser = trt.OnnxParser(network, builder.logger)
assert parser.parse_from_file(sys.argv[1]), [str(parser.get_error(index)) for index in range(parser.num_errors)]
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
for value in (network.get_input(index) for index in range(network.num_inputs)):
    profile.set_shape(value.name, *[(batch, *value.shape[1:]) for batch in (1, 1, 4)])
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
assert plan is not None
outputs = [network.get_output(index) for index in range(network.num_outputs)]
print(json.dumps({"bytes": plan.nbytes, "outputs": {value.name: list(value.shape) for value in outputs}}))
"""


def test_tensorrt_rtx_builds_a_plan_for_a_desktop_gpu(conveyor):
    """For SM 8.6, batches of 1 to 4; nothing is executed. The builder knows every shape but the batch."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the package tensorrt-rtx (requirements-dev.txt) is not installed")
    command = [sys.executable, "-c", BUILD, str(conveyor.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    *complaints, last = result.stdout.splitlines()
    assert complaints == []
    built = json.loads(last)
    rows = conveyor.spec.detection.max_detections
    assert built["outputs"] == {
        "num_detections": [-1, 1],
        "detection_boxes": [-1, rows, 4],
        "detection_scores": [-1, rows],
        "detection_classes": [-1, rows],
    }
    assert built["bytes"] > 0.5 * conveyor.path.stat().st_size
