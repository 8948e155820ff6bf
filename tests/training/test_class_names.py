"""Names for classes: those that are known, the user's, or numbers."""

from __future__ import annotations

import pytest

from runtime.errors import UserError
from training.class_names import COCO_80, VOC_20, class_names_for
from training.models.specs import COCO_CLASS_NAMES


def test_published_weights_have_their_data_sets_names():
    for names, count in ((COCO_CLASS_NAMES, 90), (COCO_80, 80), (VOC_20, 20)):
        assert len(names) == count
        assert class_names_for(count, None, is_published=True) == names
        assert class_names_for(count, None, is_published=False)[0] == "class 1"  # 80 classes need not be COCO's
    assert (COCO_80[0], COCO_80[11], COCO_80[79]) == ("person", "stop sign", "toothbrush")
    assert len(set(COCO_80)) == 80
    assert len(set(VOC_20)) == 20
    assert class_names_for(3, None, is_published=True) == ("class 1", "class 2", "class 3")


def test_the_users_names_count():
    names = ["bolt", "hex nut", "washer"]
    assert class_names_for(3, names, is_published=True) == tuple(names)
    with pytest.raises(UserError, match="3 class names were given for weights with 90 classes"):
        class_names_for(90, names, is_published=True)
