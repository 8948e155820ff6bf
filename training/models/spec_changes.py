"""Changes to a DetectorSpec, field by field."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from runtime.errors import SpecError

Record = TypeVar("Record")


def changed(record: Record, changes: Mapping[str, Any]) -> Record:
    """A copy of `record`, a DetectorSpec or a part of one, with other values.

    Args:
        changes: field -> value; for a part, a mapping of its own fields: `{"input": {"min_size": 320}}`.

    Raises:
        SpecError: an unknown field (the nearest is named), or a value that breaks the contract.
    """
    any_record: Any = record
    names = [field.name for field in dataclasses.fields(any_record)]
    values = {}
    for name, value in changes.items():
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise SpecError(f"{any_record.PATH} has no field {name!r}: the nearest known one is {nearest!r}; use that.")
        part = getattr(any_record, name)
        is_part = isinstance(value, Mapping) and dataclasses.is_dataclass(part)
        values[name] = changed(part, value) if is_part else value
    result: Record = dataclasses.replace(any_record, **values)
    return result
