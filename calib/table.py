"""The text calibration cache of TensorRT 8 and 10, `calib.cache`, which trtexec and DeepStream still read.

    TRT-100300-EntropyCalibration2
    images: 3caa5293
    backbone/body/0/Conv: 3d0f1a2b

The first line names TensorRT's version and a calibrator, the others a tensor and the scale of its INT8 values, largest
|x| / 127, as the eight hex digits of a big-endian IEEE 754 float32. TensorRT takes the scales as they stand; the
calibrator's name is only a label and says nothing of how they were found. But a table is refused ("Calibration table
does not match calibrator algorithm type") unless version and label are those of the TensorRT and of the calibrator that
read it. The calibrators of trtexec and of DeepStream's nvinfer are IInt8EntropyCalibrator2.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping

from runtime.errors import ArtifactError

INT8_LARGEST = 127
FIRST_LINE = re.compile(r"TRT-\d+-\w+")
LINE = re.compile(r"(?P<name>.+?): (?P<scale>[0-9a-f]{8})")


def format_calibration_table(amaxes: Mapping[str, float], *, method: str = "entropy", version: str = "100300") -> str:
    """The table's text.

    Args:
        amaxes: tensor name -> its largest |x|, at least 0; those with 0 have no scale and are left out.
        method: whose calibrator shall read the table: "minmax" gives TensorRT's MinMaxCalibration as the label, for
            programs with a calibrator of that kind; all others give EntropyCalibration2, for trtexec and DeepStream.
        version: of TensorRT, digits only: 8.6.1 is "8601", 10.3.0 is "100300".

    Raises:
        ArtifactError: a tensor's name that the format cannot hold.
        ValueError: a negative or infinite amax, or NaN.
    """
    label = "MinMaxCalibration" if method == "minmax" else "EntropyCalibration2"
    lines = [f"TRT-{version}-{label}"]
    for name, amax in amaxes.items():
        if ": " in name or name.splitlines() != [name]:
            raise ArtifactError(
                f'tensor name {name!r} cannot stand in a calibration table: expected one line without ": "; rename it.'
            )
        if not 0 <= amax < math.inf:
            raise ValueError(f"{name}: amax {amax}")
        packed = struct.pack(">f", amax / INT8_LARGEST)
        if any(packed):
            lines.append(f"{name}: {packed.hex()}")
    return "\n".join(lines) + "\n"


def parse_calibration_table(text: str) -> dict[str, float]:
    """Tensor name -> scale, largest |x| / 127.

    Raises:
        ArtifactError: another first line, a line that is no `name: scale`, a name that comes twice, or a scale that is
            not a finite number above 0; the sentence gives the line's number.
    """
    first, *lines = text.splitlines() or [""]
    if not FIRST_LINE.fullmatch(first):
        raise ArtifactError(
            f"line 1 of the calibration table is {first[:60]!r}: expected TRT-VERSION-CALIBRATOR; write it again."
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        match = LINE.fullmatch(line)
        if match is None:
            raise _line_error(number, line, "expected a name, a colon, a space and eight hex digits")
        (scale,) = struct.unpack(">f", bytes.fromhex(match["scale"]))
        if not 0 < scale < math.inf:
            raise _line_error(number, line, f"its scale is {scale}, expected a finite number above 0")
        if match["name"] in scales:
            raise _line_error(number, line, "this tensor was named before")
        scales[match["name"]] = scale
    return scales


def _line_error(number: int, line: str, reason: str) -> ArtifactError:
    return ArtifactError(f"line {number} of the calibration table is {line[:60]!r}: {reason}; write it again.")
