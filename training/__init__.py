"""PyTorch: the detectors, their training and data. Reads and writes checkpoints that carry a DetectorSpec."""
