"""Lower precision, written into exported ONNX files: FP16; INT8 to come."""
