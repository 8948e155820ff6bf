"""Data sets that give Samples (COCO files, generated conveyor scenes), and how Samples become a batch."""
