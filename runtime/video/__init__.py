"""Video in, boxes out: sources, the threaded pipeline, drawing and what is written."""
