"""An NVIDIA GPU in memory: `pycuda`, `tensorrt` and libcuda's graph functions, as strict as the real ones."""
