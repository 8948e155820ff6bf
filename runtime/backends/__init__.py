"""One interface, several libraries that run the network (the PyTorch one is `training/backend.py`)."""
