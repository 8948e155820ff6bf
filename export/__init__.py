"""The assembler: checkpoint to ONNX, and what is made of it."""
