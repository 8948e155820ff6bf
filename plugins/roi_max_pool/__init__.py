"""Fast R-CNN RoI max pooling: torch op, ONNX body, CUDA kernel, TensorRT plugin."""
