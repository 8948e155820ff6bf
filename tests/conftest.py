"""Shared settings: one thread per test process, no cache in the user's folder, hypothesis without deadlines."""

from __future__ import annotations

import os

import cv2
import torch
from hypothesis import settings

torch.set_num_threads(1)
cv2.setNumThreads(1)
os.environ.setdefault("EDGERCNN_ORT_CACHE", "0")
settings.register_profile("edgercnn", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("edgercnn")
