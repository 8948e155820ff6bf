"""An evaluation that several machines share: each writes what it detected to a file, one measures all of them.

A file holds one artifact's detections on one share of the images, and says which. Numbers are float32 in as many digits
as give the same float32 back, so what is measured is what was detected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.coco import CocoAnnotations
from runtime.detections import Detections
from runtime.errors import ArtifactError, UserError
from runtime.evaluation import check_class_names, merge_shards, shard_images
from runtime.files import write_json
from runtime.json_values import is_number

FORMAT = "edgercnn detections 1"
KEYS = ("format", "run", "shard", "batch", "data", "class_names", "images", "detections")
MOST_SHARES = 999_999  # what --shard can say; an empty list is kept for each
ADVICE = "give files that runtime/evaluate.py --shard wrote"


@dataclass(frozen=True)
class Run:
    """Which artifact ran, and on what; `name` is fit for a file name and, in one evaluation, unique."""

    artifact: str
    name: str
    spec_digest: str
    architecture: str
    description: str


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one artifact found: one item per image, of all images or of a share of them."""

    run: Run
    detections: list[Detections]


@dataclass(frozen=True, eq=False)
class _Share:
    """The content of one file; shard is (rank, world), data the digest of the images."""

    file: Path
    run: Run
    shard: tuple[int, int]
    batch: int
    data: str
    detections: list[Detections]


def parse_shard(text: str) -> tuple[int, int]:
    """`2/4`, the second of four -> (1, 4): (rank, world).

    Raises:
        UserError: another form, or a number out of range.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    number, world = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= world:
        raise UserError(f"--shard is {text!r}: expected which share of how many, from 1/4 to 4/4 for four machines.")
    return number - 1, world


def share_path(folder: Path, name: str, shard: tuple[int, int]) -> Path:
    """Where the share of an artifact is written."""
    return folder / f"detections-{name}.shard-{shard[0] + 1}-of-{shard[1]}.json"


def write_share(path: Path, result: RunResult, annotations: CocoAnnotations, *, shard: tuple[int, int], batch: int):
    """Write one artifact's detections on the images of `shard`.

    Raises:
        OutputError: the path cannot be written.
    """
    indices = shard_images(len(annotations), shard, batch)
    assert len(indices) == len(result.detections), (len(indices), len(result.detections))
    content = {
        "format": FORMAT,
        "run": asdict(result.run),
        "shard": list(shard),
        "batch": batch,
        "data": data_digest(annotations),
        "class_names": list(result.detections[0].class_names) if result.detections else list(annotations.class_names),
        "images": [annotations.images[index].image_id for index in indices],
        "detections": [
            {
                "boxes_xyxy": [_decimals(box) for box in found.boxes_xyxy],
                "scores": _decimals(found.scores),
                "class_ids": found.class_ids.tolist(),
            }
            for found in result.detections
        ],
    }
    write_json(path, content)


def merge_files(files: Sequence[Path], annotations: CocoAnnotations) -> list[RunResult]:
    """The artifacts whose shares the files hold, in the order of their first files, with all images' detections.

    Raises:
        ArtifactError: a file that is missing, none of ours or of other data, or shares that do not make a whole.
        AnnotationError: classes other than the detector's.
    """
    groups: dict[tuple[str, str], list[_Share]] = {}
    for file in files:
        share = _read_share(file, annotations)
        groups.setdefault((share.run.name, share.run.spec_digest), []).append(share)
    results = [_merged(shares) for shares in groups.values()]
    names = [result.run.name for result in results]
    return [
        result if names.count(result.run.name) == 1 else _renamed(result, f"{number}-{result.run.name}")
        for number, result in enumerate(results, start=1)
    ]


def data_digest(annotations: CocoAnnotations) -> str:
    """SHA-256 over which images there are, in their order, and how large they are."""
    images = [[image.image_id, image.file_name, image.height, image.width] for image in annotations]
    return hashlib.sha256(json.dumps(images).encode()).hexdigest()


def _merged(shares: list[_Share]) -> RunResult:
    first = shares[0]
    for other in shares[1:]:
        if (other.shard[1], other.batch) != (first.shard[1], first.batch):
            raise ArtifactError(
                f"{other.file} is one of {other.shard[1]} shares in batches of {other.batch}, and {first.file} is one "
                f"of {first.shard[1]} in batches of {first.batch}: give shares of one evaluation."
            )
    by_rank = {share.shard[0]: share for share in shares}
    if len(by_rank) < len(shares):
        raise ArtifactError(f"the shares of {first.run.name} hold one twice: give each file once.")
    lacking = [f"{rank + 1}/{first.shard[1]}" for rank in range(first.shard[1]) if rank not in by_rank]
    if lacking:
        raise ArtifactError(f"of {first.run.name} the shares {', '.join(lacking)} are missing: give their files too.")
    parts = [by_rank[rank].detections for rank in range(first.shard[1])]
    return RunResult(first.run, merge_shards(parts, batch=first.batch))


def _renamed(result: RunResult, name: str) -> RunResult:
    return RunResult(replace(result.run, name=name), result.detections)


def _read_share(file: Path, annotations: CocoAnnotations) -> _Share:
    content = _load(file)
    run, shard, batch = _header(content, file)
    if content["data"] != data_digest(annotations):
        raise ArtifactError(f"{file} was made on other images than {annotations.file}: give the same --data as there.")
    class_names = content["class_names"]
    if not (isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)):
        raise _foreign(file, "class_names is no list of texts")
    check_class_names(class_names, annotations)
    indices = shard_images(len(annotations), shard, batch)
    expected = [annotations.images[index].image_id for index in indices]
    entries = content["detections"]
    if content["images"] != expected or not isinstance(entries, list) or len(entries) != len(expected):
        raise _foreign(file, f"it does not hold the {len(expected)} images of its share")
    names = tuple(class_names)
    return _Share(file, run, shard, batch, content["data"], [_detections(entry, names, file) for entry in entries])


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}): {ADVICE}.") from error
    except (ValueError, RecursionError) as error:
        raise _foreign(file, "it is no valid JSON, and may be cut off") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _foreign(file, f'its format is not "{FORMAT}"')
    if sorted(content) != sorted(KEYS):
        raise _foreign(file, f"its keys are not {', '.join(KEYS)}")
    return content


def _header(content: dict[str, Any], file: Path) -> tuple[Run, tuple[int, int], int]:
    run, shard, batch = content["run"], content["shard"], content["batch"]
    names = list(Run.__dataclass_fields__)
    if not (
        isinstance(run, dict) and sorted(run) == sorted(names) and all(isinstance(run[name], str) for name in names)
    ):
        raise _foreign(file, f"run does not hold the texts {', '.join(names)}")
    if Path(run["name"]).name != run["name"]:
        raise _foreign(file, "the name of its run is no file name")
    whole = isinstance(shard, list) and len(shard) == 2 and all(type(number) is int for number in [*shard, batch])
    if not (whole and 0 <= shard[0] < shard[1] <= MOST_SHARES and batch >= 1):
        raise _foreign(file, "shard and batch are no whole numbers in their range")
    return Run(**run), (shard[0], shard[1]), batch


def _detections(entry: Any, class_names: tuple[str, ...], file: Path) -> Detections:
    """One image's, with the promises of Detections kept."""
    if not isinstance(entry, dict) or sorted(entry) != ["boxes_xyxy", "class_ids", "scores"]:
        raise _foreign(file, "detections are no objects of boxes_xyxy, scores and class_ids")
    boxes, scores, class_ids = entry["boxes_xyxy"], entry["scores"], entry["class_ids"]
    lists = all(isinstance(value, list) for value in (boxes, scores, class_ids))
    if not (lists and len(boxes) == len(scores) == len(class_ids)):
        raise _foreign(file, "boxes_xyxy, scores and class_ids are no lists of one length")
    if not all(isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) for box in boxes):
        raise _foreign(file, "a box is not four finite numbers")
    if not all(is_number(score) and 0 < score <= 1.001 for score in scores):
        raise _foreign(file, "a score is no number from 0 to 1")
    if not all(type(index) is int and 0 <= index < len(class_names) for index in class_ids):
        raise _foreign(file, f"a class id is no whole number from 0 to {len(class_names) - 1}")
    table = np.array(boxes, np.float64).reshape(-1, 4)
    if not ((table >= 0).all() and (table[:, :2] <= table[:, 2:]).all() and (table <= np.finfo(np.float32).max).all()):
        raise _foreign(file, "a box is not x1 <= x2, y1 <= y2 within its image")
    ids = np.array(class_ids, np.int32)
    return Detections(table.astype(np.float32), np.array(scores, np.float32), ids, class_names)


def _decimals(values: np.ndarray) -> list[float]:
    """float32 -> the shortest decimals that give it back, as float64 that JSON prints so."""
    return [float(str(value)) for value in values.astype(np.float32)]


def _foreign(file: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{file} is no file of detections ({reason}): {ADVICE}.")
