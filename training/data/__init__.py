"""Data sets that give Samples (annotated images, generated conveyor scenes), and how Samples become a batch."""
