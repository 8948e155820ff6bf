"""A made-up conveyor belt with industrial parts, seen from above: pictures, clips and data sets with exact boxes.

Needs NumPy and OpenCV only, so that the demo's clip can be made on a device too. Every picture is a function of
(seed, index): the same pair gives the same bytes with the same versions of OpenCV and NumPy.

    CLASS_NAMES                                        class id -> name
    scene.render_scene(seed, index, size_hw)           -> Scene(frame, boxes_xyxy, labels, visible, part_ids)
    video.Clip(frames, seed, speed, size_hw)           -> the Scenes of a moving belt with the same look
    video.write_demo_clip(path, frames, fps, seed)     the clip as MP4 and its ground truth as COCO JSON
    dataset.write_dataset(folder, count, seed, first)  a folder of pictures and annotations.json

The flow of one picture: belt.py draws the belt, shading.py invents the hall's light, parts.py picks classes, sizes and
materials, fasteners.py and machine_parts.py build each part as a relief, shading.py colours it, scene.py turns it,
lays it with its shadow on the belt and notes which pixels it owns, camera.py exposes the frame.
"""

from __future__ import annotations

CLASS_NAMES = ("bolt", "nut", "washer", "gear", "spring", "bearing")
