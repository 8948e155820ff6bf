"""Region proposals of the RPN: torch op, ONNX body, CUDA kernel, TensorRT plugin."""
