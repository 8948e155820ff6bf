"""The self-test and the preprocessing kernel: when it is built; plans that run without it, or without a CUDA graph."""

from __future__ import annotations

import pytest

from export import selftest_sequence
from export.selftest_report import report_markdown, summary
from export.selftest_steps import FAILED, NOT_RUN
from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import Facts
from runtime.diagnosis.verdicts import verdicts
from tests.export.test_selftest import PLANS, RecordedSteps, description_of, selftest_on
from tests.runtime.doctor_machines import desktop, kernel_library, missing

KERNELS = ("plugins/build.py", "--kind", "cuda")
NO_KERNELS = Finding(problem="it is not built yet")


@pytest.fixture
def doctor_then(monkeypatch):
    """What the doctor finds of the kernel library once it has been built."""

    def set_finding(finding: Finding) -> None:
        monkeypatch.setattr(selftest_sequence, "run_checks", lambda checks: dict.fromkeys(checks, finding))

    return set_finding


def test_kernels_are_built_where_none_fit(tmp_path, doctor_then):
    doctor_then(kernel_library(89))
    headers = desktop()["toolchain"].values | {"missing": {"headers": "not found"}}
    for machine in (
        desktop(kernel_library=NO_KERNELS),
        desktop(kernel_library=kernel_library(120)),
        desktop(kernel_library=Finding({**kernel_library(89).values, "old_sources": True})),
        desktop(kernel_library=NO_KERNELS, toolchain=Finding(headers), tensorrt=missing("tensorrt")),
    ):
        steps = RecordedSteps()
        done = selftest_on(machine, tmp_path, steps)
        assert steps.commands["build kernels"] == KERNELS
        assert done["build kernels"].passed
        steps = RecordedSteps(described=description_of(note="no"))
        assert selftest_on(machine, tmp_path, steps)["TensorRT-RTX, fp16"].state == FAILED


def test_no_kernels_without_compilers_and_plans_run_all_the_same(tmp_path):
    tools = Finding({**desktop()["toolchain"].values, "missing": {"nvcc": "not found"}})
    steps = RecordedSteps(described=description_of(note="libedgercnn_kernels.so is missing"))
    done = selftest_on(desktop(kernel_library=NO_KERNELS, toolchain=tools), tmp_path, steps)
    assert (done["build kernels"].state, done["build kernels"].detail) == (NOT_RUN, "nvcc is missing")
    assert all(done[name].passed for name in PLANS)
    assert summary(steps.done).endswith("not run; 4 plans with frames prepared on the CPU")


def test_kernels_that_are_built_and_not_found_fail(tmp_path, doctor_then):
    doctor_then(kernel_library(120))
    done = selftest_on(desktop(kernel_library=kernel_library(120)), tmp_path, RecordedSteps())
    assert done["build kernels"].state == FAILED
    assert "another one is found first" in done["build kernels"].detail


def test_a_failed_build_of_kernels_stops_no_plan(tmp_path):
    described = description_of(note="libedgercnn_kernels.so is missing")
    steps = RecordedSteps(failing=("build kernels",), described=described)
    done = selftest_on(desktop(kernel_library=NO_KERNELS), tmp_path, steps)
    assert [name for name, step in done.items() if step.state == FAILED] == ["build kernels"]
    assert all(done[name].passed for name in PLANS)


def test_a_plan_that_leaves_the_kernels_unused_fails(tmp_path):
    steps = RecordedSteps(described=description_of(note="a library of (ours) does not load"))
    done = selftest_on(desktop(), tmp_path, steps)
    for name in PLANS:
        assert done[name].state == FAILED
        assert done[name].detail.startswith("frames prepared on the CPU (a library of (ours) does not load)")
    assert done["ONNX Runtime, GPU"].passed
    assert "video with the FP16 plan" not in done


def test_a_plan_without_a_graph_passes_and_is_seen(tmp_path):
    steps = RecordedSteps(described=description_of(has_graph=False, failure="no cuStreamBeginCapture_v2 (530)"))
    done = selftest_on(desktop(), tmp_path, steps)
    assert all(done[name].passed for name in PLANS)
    assert summary(steps.done).endswith("2 not run; 4 plans without a CUDA graph")
    text = report_markdown(steps.done, desktop(), verdicts(Facts(desktop())))
    assert text.splitlines()[0].endswith("4 plans without a CUDA graph")
    assert text.count("| without a CUDA graph (no cuStreamBeginCapture_v2 (530)) |") == len(PLANS)
