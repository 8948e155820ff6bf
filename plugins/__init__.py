"""The four custom ops, one room each: torch op, ONNX body, CUDA kernel, TensorRT plugin."""
