"""A frame that is on the GPU already: from a hardware decoder, a camera's DMA buffer, or another library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import SourceError

BYTES_PER_PIXEL = {"bgr": 3, "rgb": 3, "nv12": 1}
COLORS = ("bt601", "bt709")
MAX_SIDE = 32767


@dataclass(frozen=True)
class DeviceFrame:
    """Given to a Detector in place of an array; only TensorRT plans take it, all frames of a batch in one format.

    The memory stays the caller's. It must be on the detector's GPU (in its primary context, or mapped into it),
    complete when `prepare` or the detector is called (the detector's streams wait for no other stream: synchronise
    yours first), and unchanged until `infer` or the call returns. A pool of buffers that come back is best: CUDA graphs
    are kept for the last few addresses.

    Raises:
        SourceError: on construction, numbers that describe no picture.
    """

    pointer: int  # [height, width, 3] uint8, or for nv12 the luma plane [height, width]
    height: int  # image px; even for nv12
    width: int
    pitch: int  # bytes from row to row
    format: str = "bgr"  # or "rgb", "nv12"
    chroma_pointer: int = 0  # nv12: [height / 2, width / 2] pairs (U, V)
    chroma_pitch: int = 0
    color: str = "bt601"  # of nv12: or "bt709", both in limited range

    def __post_init__(self) -> None:
        wrong = self._what_is_wrong()
        if wrong:
            raise SourceError(f"a DeviceFrame has {wrong}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3), as the array of this picture would have it."""
        return self.height, self.width, 3

    def _what_is_wrong(self) -> str | None:
        if self.format not in BYTES_PER_PIXEL:
            return f"the format {self.format!r}: expected one of {', '.join(BYTES_PER_PIXEL)}"
        if self.color not in COLORS:
            return f"the color {self.color!r}: expected {' or '.join(COLORS)}"
        if not (0 < self.height <= MAX_SIDE and 0 < self.width <= MAX_SIDE):
            return f"the size {self.width}x{self.height}: expected sides of 1 to {MAX_SIDE} px"
        row = self.width * BYTES_PER_PIXEL[self.format]
        if self.pointer <= 0 or self.pitch < row:
            return (
                f"the pointer {self.pointer:#x} and the pitch {self.pitch}: expected an address and {row} bytes or more"
            )
        if self.format != "nv12":
            return None
        if self.height % 2 or self.width % 2:
            return f"the size {self.width}x{self.height}: expected even sides for nv12"
        if self.chroma_pointer <= 0 or self.chroma_pointer % 2 or self.chroma_pitch < row or self.chroma_pitch % 2:
            return (
                f"the chroma_pointer {self.chroma_pointer:#x} and the chroma_pitch {self.chroma_pitch}: expected an "
                f"even address and an even pitch of at least {row} bytes"
            )
        return None


def split_frames(frames: Sequence[object]) -> list[DeviceFrame] | None:
    """The frames if all are DeviceFrames of one format, None if none is.

    Raises:
        SourceError: some are, or they differ in format or color.
    """
    on_device = [frame for frame in frames if isinstance(frame, DeviceFrame)]
    if not on_device:
        return None
    if len(on_device) < len(frames):
        raise SourceError(
            f"{len(on_device)} of {len(frames)} frames are DeviceFrames, the others are not: give one kind in a batch."
        )
    kinds = {(frame.format, frame.color if frame.format == "nv12" else "") for frame in on_device}
    if len(kinds) > 1:
        found = " and ".join(sorted(" ".join(kind).strip() for kind in kinds))
        raise SourceError(f"the DeviceFrames of a batch are {found}: give frames of one format in a batch.")
    return on_device
