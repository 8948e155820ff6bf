"""Shared settings: one torch thread per test process, and hypothesis without deadlines (CI machines are uneven)."""

from __future__ import annotations

import cv2
import torch
from hypothesis import settings

torch.set_num_threads(1)
cv2.setNumThreads(1)
settings.register_profile("edgercnn", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("edgercnn")
