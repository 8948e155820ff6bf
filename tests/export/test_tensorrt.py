"""Exported detectors become TensorRT-RTX plans for GPUs that are not here, in FP32 and in FP16.

The builder is the true one (tensorrt_rtx, no GPU needed); nothing is run. Its log has the type of each layer.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections import defaultdict

import onnx
import pytest
from onnx import TensorProto

from runtime.plan import check_plan_file, read_sidecar
from tests.test_structure import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="the package tensorrt-rtx (requirements-dev.txt) is not installed",
)
SCRIPT = [sys.executable, str(ROOT / "export" / "build_engine.py"), "--target", "rtx"]
SMS = ["--sm", "86", "89", "120"]
BUILDER_TYPES = {"Half": TensorProto.FLOAT16, "Float": TensorProto.FLOAT}
# what stays FP32 in an FP16 plan: the last layers before scores are ranked and boxes decoded
ISLANDS = re.compile(r"rpn/head/(cls_logits|bbox_pred)/Conv|roi_heads/box_predictor/(cls_score|bbox_pred)/Gemm")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["conveyor", "fasterrcnn_resnet50_fpn"])
def test_a_plan_for_three_gpus_computes_in_the_types_of_the_graph(name, precision, export_of, tmp_path):
    exported = export_of(name)
    plan, graph = tmp_path / "out.plan", tmp_path / "graph.onnx"
    options = [*SMS, "--precision", precision, "--engine", plan, "--save-onnx", graph, "--verbose"]
    start = time.perf_counter()
    result = subprocess.run([*SCRIPT, "--onnx", exported.path, *options], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - start < 120
    record = read_sidecar(plan)
    assert record is not None
    assert check_plan_file(plan, record).flavour == "tensorrt_rtx"
    assert (record.precision, record.sms, record.plugins_sha256) == (precision, (86, 89, 120), None)
    assert record.spec.parent_digest == (exported.spec.parent_digest if precision == "fp32" else exported.spec.digest())
    assert record.batches == (1, 1, 4)
    wanted, built = graph_types(onnx.load(graph)), layer_types(result.stdout)
    assert {name: built[name] for name in wanted} == {name: {wanted[name]} for name in wanted}
    singles = {name for name, made in wanted.items() if made == TensorProto.FLOAT}
    assert singles == {name for name in wanted if precision == "fp32" or ISLANDS.match(name)}
    assert len(singles) >= 4


def graph_types(model: onnx.ModelProto) -> dict[str, int]:
    """Type that each convolution and matrix product of the dense part computes in: that of its weights."""
    types = {item.name: item.data_type for item in model.graph.initializer}
    return {node.name: types[node.input[1]] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}


def layer_types(log: str) -> dict[str, set[int]]:
    """The same, by the names of ONNX nodes, as the builder's list of layers has it."""
    types: dict[str, set[int]] = defaultdict(set)
    for line in log.splitlines():
        if "LayerType: " not in line or "Metadata: " not in line:
            continue
        constants = re.search(r"Constants: \[(.*?)\], Outputs", line)
        found = re.search(r"Dimensions: \[\d+,\d+[,\d]*\], .*?Datatype: (\w+)", constants[1] if constants else "")
        if found and not re.search(r"LayerType: (kgen|memset|copy|cast),", line):
            for name in re.findall(r"\[ONNX Layer: ([^\]]+)\]", line):
                types[name].add(BUILDER_TYPES[found[1]])
    return types
