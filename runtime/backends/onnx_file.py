"""The metadata of an ONNX file, read without ONNX or ONNX Runtime: says at once what a wrong file is.

An ONNX file is one protobuf message, ModelProto: a run of fields, each a key (number and kind) and a value. Only two of
its fields matter here: graph, whose length must fit into the file, and metadata_props.
Ref: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from runtime.errors import ArtifactError, SpecError
from runtime.spec import DetectorSpec

GRAPH, METADATA_PROPS = 7, 14  # field numbers of ModelProto
SPEC_KEY, DIGEST_KEY = "edgercnn.spec", "edgercnn.digest"  # of metadata_props
KEY, VALUE = 1, 2  # of StringStringEntryProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of values
ADVICE = "make it with `python export/to_onnx.py`"

Span = tuple[int, int]  # first byte and the one after the last


class _NotProtobufError(ValueError):
    """Bytes that no protobuf message begins with."""


class _CutOffError(ValueError):
    """A file that ends within its graph or after it, before its last field is complete."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `metadata_props` of an ONNX file.

    Raises:
        ArtifactError: the file is missing, empty, unreadable, truncated, or no ONNX file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ArtifactError(f"{path} {found}: expected an ONNX file; {ADVICE}.")
        if size == 0:
            raise ArtifactError(f"{path} is empty (0 bytes): expected an ONNX file; {ADVICE}.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _metadata(data)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}): {ADVICE}.") from error
    except _CutOffError as error:
        raise ArtifactError(f"{path} is cut off after {size} bytes: copy it again, or {ADVICE}.") from error
    except (_NotProtobufError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not an ONNX file: {ADVICE}.") from error


def spec_of_metadata(metadata: Mapping[str, str], whose: str) -> DetectorSpec:
    """The spec in an ONNX file's `metadata_props`, checked against its digest; `whose` names the file.

    Raises:
        ArtifactError: there is none, it is not valid, or it does not match its digest.
    """
    for key in (SPEC_KEY, DIGEST_KEY):
        if key not in metadata:
            raise ArtifactError(f"{whose} carries no {key}: it was not exported by EdgeRCNN, or was cut off; {ADVICE}.")
    try:
        spec = DetectorSpec.from_json(metadata[SPEC_KEY])
    except SpecError as error:
        raise ArtifactError(f"{whose}: {error}") from error
    if spec.digest() != metadata[DIGEST_KEY]:
        raise ArtifactError(f"{whose} has a spec that does not match its digest, so one of them was edited: {ADVICE}.")
    return spec


def _metadata(data: mmap.mmap) -> dict[str, str]:
    spans: list[tuple[int, Span]] = []
    try:
        spans.extend(_fields(data, (0, len(data))))
    except _NotProtobufError:
        if _has_graph(spans):
            raise _CutOffError from None
        raise
    if not _has_graph(spans):
        raise _NotProtobufError
    pairs = [dict(_fields(data, span)) for number, span in spans if number == METADATA_PROPS]
    return {_text(data, pair.get(KEY)): _text(data, pair.get(VALUE)) for pair in pairs}


def _has_graph(spans: list[tuple[int, Span]]) -> bool:
    return any(number == GRAPH for number, _ in spans)


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """(field number, span of its value) of each field of the message that lies in `span`."""
    position, end = span
    while position < end:
        key, position = _varint(data, position, end)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
            raise _NotProtobufError
        if kind == VARINT:
            after = _varint(data, position, end)[1]
        elif kind == BYTES:
            length, position = _varint(data, position, end)
            after = position + length
        else:
            after = position + (8 if kind == FIXED64 else 4)
        if after > end:
            raise _CutOffError if number == GRAPH else _NotProtobufError
        yield number, (position, after)
        position = after


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number in base 128, lowest digits first, and the position after it."""
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise _NotProtobufError


def _text(data: mmap.mmap, span: Span | None) -> str:
    return "" if span is None else data[span[0] : span[1]].decode("utf-8")
