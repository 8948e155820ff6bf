"""INT8 and mixed files become TensorRT-RTX plans that compute each layer in what the precision plan says.

The builder is the true one (tensorrt_rtx, no GPU needed); nothing is run. Its log has the types of each layer.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict

import onnx
import pytest

from calib.artifact import spec_of_model
from runtime.plan import check_plan_file, read_sidecar
from tests.calib.conftest import calibrated, calibrated_demo, calibrated_resnet, demo, resnet
from tests.test_structure import ROOT

__all__ = ["calibrated", "calibrated_demo", "calibrated_resnet", "demo", "resnet"]  # fixtures
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="the package tensorrt-rtx (requirements-dev.txt) is not installed",
)
SCRIPT = [sys.executable, str(ROOT / "export" / "build_engine.py"), "--target", "rtx", "--sm", "86", "--verbose"]
TYPES = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}  # in the plan's words and in the builder's
# Kernels that compute convolutions and matrix products, alone or with what is fused into them. Others (kgen, cast,
# copy, memset) name ONNX nodes too: they quantise and rearrange data.
COMPUTING = ("correlation", "gemm", "runtime_fusion")


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_every_layer_computes_in_what_the_plan_says(calibrated, precision, tmp_path):
    model = calibrated.converted(precision)
    path, engine = tmp_path / "model.onnx", tmp_path / "out.plan"
    onnx.save(model, path)
    command = [*SCRIPT, "--precision", precision, "--onnx", path, "--engine", engine]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    record, spec = read_sidecar(engine), spec_of_model(model)
    assert record is not None
    assert check_plan_file(engine, record).flavour == "tensorrt_rtx"
    assert (record.precision, record.spec) == (precision, spec)
    plan = spec.precision_plan
    wanted = {layer: {TYPES[kind]} for kind in TYPES for layer in getattr(plan, kind)}
    built = layer_types(result.stdout)
    assert {layer: built[layer] for layer in wanted} == wanted
    assert len(plan.int8) >= 25
    assert len(plan.fp32) >= 10
    assert bool(plan.fp16) == (precision == "mixed")


def layer_types(log: str) -> dict[str, set[str]]:
    """Types of data and weights, by the names of ONNX nodes, of the kernels that compute them."""
    types: dict[str, set[str]] = defaultdict(set)
    for line in log.splitlines():
        kernel = re.search(r"LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs", line)
        if kernel is None or kernel[1] not in COMPUTING or "Metadata: " not in line:
            continue
        data = re.findall(r"Datatype: (\w+)", kernel[2])[:1]
        # of two dimensions or more, but for biases and scales, which are [1, O] or [1, O, 1, 1]
        weights = re.findall(r"Dimensions: \[(?!1,)\d+(?:,\d+)+\], .*?Datatype: (\w+)", kernel[3])
        for name in re.findall(r"\[ONNX Layer: ([^\]]+)\]", line):
            types[name].update([*data, *weights])
    return types
