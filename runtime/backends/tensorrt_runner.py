"""Runs an engine over staged batches: one execution context, one compute stream, one CUDA graph launch per batch.

A graph holds preprocess kernel -> engine -> download of the outputs. The upload stays outside of it, on the copy
stream: so the upload of the next batch overlaps with the computation of this one, which within one graph it could not,
and one execution context, whose memory is large, is enough for two slots; the compute stream waits for its event.

The first run of a batch goes call by call, since TensorRT finishes its preparations for new shapes in it; the second
run of an equal batch is captured. Graphs of other shapes than the last are dropped: the context is set to one shape.
Ref: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html (CUDA graphs)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.backends.cuda_device import CudaDevice, TransferBuffer
from runtime.backends.cuda_graph import Graph, GraphError, capture_graph
from runtime.backends.tensorrt_buffers import CLOSED, StagedBatch
from runtime.backends.tensorrt_engine import INPUTS, PlanEngine
from runtime.backends.tensorrt_preprocess import PreprocessKernel
from runtime.errors import RunError

MOST_FAILED_CAPTURES = 2
GRAPHS = 8  # kept; a decoder's pool of surfaces has about as many addresses


class EngineRunner:
    """Everything of a plan that belongs to one thread of inference. Every method wants the device active.

    Raises:
        BackendUnavailableError: out of memory.
        RunError: TensorRT gives no execution context.
    """

    def __init__(self, device: CudaDevice, engine: PlanEngine, kernel: PreprocessKernel | None) -> None:
        self.graph_failure: str | None = None  # why graphs are not used, once that is known
        self._failed_captures = 0  # in a row
        self._kernel = kernel
        self._engine = engine
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._bound_shape: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self._outputs: dict[str, TransferBuffer] = {}
        self._context: Any = engine.new_context(device)
        self._stream: Any = device.stream()
        self._finished: Any = device.event()
        try:
            for name, output in engine.outputs.items():
                self._outputs[name] = TransferBuffer(device, output.nbytes(engine.max_batch), f"the output {name}")
        except Exception:
            self.close()
            raise

    @property
    def has_graph(self) -> bool:
        """A graph has been captured, and is used."""
        return bool(self._graphs)

    def run(self, staged: StagedBatch) -> RawOutputs:
        """The outputs of the batch, without what it was filled up with. The batch is released.

        Raises:
            RunError: TensorRT or the GPU failed.
        """
        with self._lock:
            try:
                if self._context is None:
                    raise RunError(CLOSED)
                if staged.is_released:
                    raise RunError("this batch has been inferred or released before: prepare its frames again.")
                if staged.uploaded is not None:
                    self._stream.wait_for_event(staged.uploaded)
                self._launch(staged)
                self._finished.record(self._stream)
                self._finished.synchronize()
                return self._read(staged)
            finally:
                staged.release()

    def close(self) -> None:
        """Free what belongs to this thread; the engine stays for others."""
        with self._lock:
            if self._context is None:
                return
            self._stream.synchronize()
            self._drop_graphs()
            for buffer in self._outputs.values():
                buffer.free()
            self._context = self._stream = self._finished = None

    def _launch(self, staged: StagedBatch) -> None:
        if staged.shape != self._bound_shape:
            self._drop_graphs()
        key = staged.key
        graph = self._graphs.get(key)
        if graph is None and key in self._seen and self.graph_failure is None:
            graph = self._capture(staged, key)
        if graph is None:
            self._bind(staged)
            self._enqueue(staged)
            self._remember(key)
            return
        self._graphs.move_to_end(key)
        try:
            graph.launch(self._stream)
        except GraphError as error:
            raise RunError(f"the CUDA graph did not start ({error}): start the program again.") from error

    def _capture(self, staged: StagedBatch, key: Hashable) -> Graph | None:
        """The graph of this batch; None if it cannot be captured, now or ever."""
        can_capture = getattr(self._context, "is_stream_capturable", None)  # of TensorRT-RTX
        self._bind(staged)
        try:
            if can_capture is not None and not can_capture(self._stream.handle):
                raise GraphError("TensorRT says that this engine cannot be captured")
            graph = capture_graph(self._stream, lambda: self._enqueue(staged))
        except GraphError as error:
            self._failed_captures += 1  # the first may have been spoilt by what ran beside it
            if self._failed_captures == MOST_FAILED_CAPTURES:
                self.graph_failure = str(error).rstrip(".")
            return None
        self._failed_captures = 0
        if len(self._graphs) >= GRAPHS:
            self._graphs.popitem(last=False)[1].close()
        self._graphs[key] = graph
        return graph

    def _bind(self, staged: StagedBatch) -> None:
        """Tell TensorRT shapes and addresses; shapes only when they change, for that it has to prepare anew."""
        if staged.shape != self._bound_shape:
            self._bound_shape = None
            for name, shape in zip(INPUTS, (staged.shape, (staged.shape[0], 4))):
                if not self._context.set_input_shape(name, shape):
                    raise self._engine.failure(f"TensorRT does not take {name} of shape {list(shape)}")
            self._bound_shape = staged.shape
        addresses = dict(zip(INPUTS, staged.addresses))
        addresses |= {name: buffer.address for name, buffer in self._outputs.items()}
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._engine.failure(f"TensorRT does not take the address of {name}")

    def _enqueue(self, staged: StagedBatch) -> None:
        """Kernel, engine, downloads, on the compute stream."""
        if staged.ops:
            assert self._kernel is not None, "frames are staged for the kernel only where there is one"
            self._kernel.launch(staged.ops, *staged.addresses, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.failure("TensorRT could not run the plan")
        for name, output in self._engine.outputs.items():
            self._outputs[name].download(output.nbytes(staged.shape[0]), self._stream)

    def _read(self, staged: StagedBatch) -> RawOutputs:
        batch, arrays = staged.shape[0], []
        for name, output in self._engine.outputs.items():
            rows: np.ndarray = self._outputs[name].host[: output.nbytes(batch)].view(output.dtype)
            arrays.append(rows.reshape(batch, *output.shape)[: staged.count].copy())
        return RawOutputs(*arrays)

    def _remember(self, key: Hashable) -> None:
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > GRAPHS:
            self._seen.popitem(last=False)

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._seen.clear()
