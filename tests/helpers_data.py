"""Small data sets of the same content in COCO's, Pascal VOC's and YOLO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from runtime.coco import CocoImage


class Truth(NamedTuple):
    """One picture: boxes are (x1, y1, x2, y2, class name, is difficult) in image px, sides between pixels."""

    name: str
    height: int
    width: int
    boxes: Sequence[tuple[float, float, float, float, str, bool]] = ()


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_pictures(folder: Path, truths: Sequence[Truth], first_seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, truth in enumerate(truths, start=first_seed):
        cv2.imwrite(str(folder / f"{truth.name}.png"), picture(seed, truth.height, truth.width))


def write_coco(folder: Path, truths: Sequence[Truth], names: Sequence[str], first_seed: int = 0) -> Path:
    """folder/annotations.json and folder/images."""
    write_pictures(folder / "images", truths, first_seed)
    images, annotations = [], []
    for number, truth in enumerate(truths, start=1):
        entry = {"id": number, "file_name": f"images/{truth.name}.png", "height": truth.height, "width": truth.width}
        images.append(entry)
        for x1, y1, x2, y2, name, _ in truth.boxes:
            box = {"image_id": number, "category_id": list(names).index(name) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append({"id": len(annotations) + 1, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def voc_xml(truth: Truth) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{x1 + 1!r}</xmin>"
        f"<ymin>{y1 + 1!r}</ymin><xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
        for x1, y1, x2, y2, name, difficult in truth.boxes
    )
    size = f"<size><width>{truth.width}</width><height>{truth.height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{truth.name}.png</filename>{size}{objects}</annotation>"


def write_voc(folder: Path, splits: dict[str, Sequence[Truth]], first_seed: int = 0) -> Path:
    """JPEGImages, Annotations and ImageSets/Main/<split>.txt."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, truths in splits.items():
        write_pictures(folder / "JPEGImages", truths, first_seed)
        first_seed += len(truths)
        for truth in truths:
            (folder / "Annotations" / f"{truth.name}.xml").write_text(voc_xml(truth))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{truth.name}\n" for truth in truths))
    return folder


def yolo_text(truth: Truth, names: Sequence[str]) -> str:
    lines = []
    for x1, y1, x2, y2, name, _ in truth.boxes:
        centre = ((x1 + x2) / 2 / truth.width, (y1 + y2) / 2 / truth.height)
        size = ((x2 - x1) / truth.width, (y2 - y1) / truth.height)
        lines.append(" ".join(str(value) for value in (list(names).index(name), *centre, *size)))
    return "\n".join(lines)


def write_yolo(folder: Path, splits: dict[str, Sequence[Truth]], names: Sequence[str], first_seed: int = 0) -> Path:
    """images/<split>, labels/<split> and data.yaml."""
    for split, truths in splits.items():
        write_pictures(folder / "images" / split, truths, first_seed)
        first_seed += len(truths)
        (folder / "labels" / split).mkdir(parents=True)
        for truth in truths:
            (folder / "labels" / split / f"{truth.name}.txt").write_text(yolo_text(truth, names))
    lines = [f"{split}: images/{split}" for split in splits] + ["names:"]
    lines += [f"  {number}: {name}" for number, name in enumerate(names)]
    path = folder / "data.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def annotated_image(
    image_id: int, side: int, boxes: Sequence, class_ids: Sequence[int], *, crowd=None, difficult=None
) -> CocoImage:
    """A made-up image of `side` x `side` px that is not on disk; crowd and difficult are lists of bool, or none is."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return CocoImage(
        image_id=image_id,
        file_name=f"{image_id}.png",
        path=Path(f"{image_id}.png"),
        height=side,
        width=side,
        boxes_xyxy=array,
        class_ids=np.array(class_ids, np.int64),
        is_crowd=np.array(crowd or [False] * len(array), bool),
        areas=(array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]),
        is_difficult=np.array(difficult or [False] * len(array), bool),
    )
