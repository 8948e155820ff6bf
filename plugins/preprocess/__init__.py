"""Camera frames to the network's input: CUDA kernel."""
