"""The detectors, part by part: backbones, fpn, anchors, rpn, roi_heads, detectors; their presets in specs."""
