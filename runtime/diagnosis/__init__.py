"""What `runtime/doctor.py` asks a machine, and what it concludes."""
