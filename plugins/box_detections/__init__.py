"""Class scores and box deltas to detections: torch op, ONNX body, CUDA kernel, TensorRT plugin."""
