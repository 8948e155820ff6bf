"""RoIAlign over a feature pyramid: torch op, ONNX body, CUDA kernel, TensorRT plugin."""
