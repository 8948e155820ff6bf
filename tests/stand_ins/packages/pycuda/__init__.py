"""Stand-in for pycuda: see tests/stand_ins."""
