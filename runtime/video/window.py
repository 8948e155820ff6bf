"""A window with the annotated frames, for `run_video.py --show`."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np

from runtime.errors import BackendUnavailableError

TITLE = "EdgeRCNN (q: quit)"
PROBE = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"
QUIT_KEYS = (ord("q"), 27)  # 27: escape


class Window:
    """Use from the main thread: some systems allow no other.

    Raises:
        BackendUnavailableError: no display, or an OpenCV built without windows.
    """

    def __init__(self) -> None:
        # without a display Qt ends the process that tries, so another one tries first
        try:
            probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=30, check=False)
            works = probe.returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            works = False
        if not works:
            raise BackendUnavailableError(
                "--show cannot open a window: there is no display, or this OpenCV was built without windows "
                "(opencv-python-headless); leave --show out and look at the MP4."
            )
        self._shown: np.ndarray | None = None

    def show(self, frame: np.ndarray | None) -> bool:
        """Show `frame` if it is new; False when the user wants to quit (q, escape)."""
        if frame is not None and frame is not self._shown:
            cv2.imshow(TITLE, frame)
            self._shown = frame
        return self._shown is None or cv2.waitKey(1) & 0xFF not in QUIT_KEYS

    def close(self) -> None:
        cv2.destroyAllWindows()
