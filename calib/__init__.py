"""Lower precision, measured on images and written into exported ONNX files: FP16 and INT8."""
