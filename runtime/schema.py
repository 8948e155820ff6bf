"""Typed, checked, frozen records: what `runtime/spec.py` is written in.

A record is a frozen dataclass whose fields are all required, but for those with the default None, which are left out of
the mapping where they are None. A field's annotation gives its type and, as in
`Annotated[float, fraction()]`, the rule its value must satisfy. A wrong, missing or unknown field raises SpecError with
one sentence that names it by its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union

from runtime.errors import SpecError

Record = TypeVar("Record")
ADVICE = "correct the spec, or take one from training/models/specs.py"


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy beyond its type; `expected` completes "expected ..." in the error."""

    accepts: Callable[[Any], bool]
    expected: str


def ruled(accepts: Callable[[Any], bool], expected: str) -> Rule:
    """A rule of one's own."""
    return Rule(accepts, expected)


def positive() -> Rule:
    """A number above 0."""
    return Rule(lambda value: value > 0, "a number above 0")


def at_least(low: float) -> Rule:
    """A number of `low` or more."""
    return Rule(lambda value: value >= low, f"a number of at least {low:g}")


def fraction() -> Rule:
    """A number from 0 to 1."""
    return Rule(lambda value: 0.0 <= value <= 1.0, "a number from 0 to 1")


def one_of(*choices: object) -> Rule:
    """One of `choices`."""
    return Rule(lambda value: value in choices, "one of " + ", ".join(repr(choice) for choice in choices))


def every_positive() -> Rule:
    """A list of numbers above 0, at least one."""
    return Rule(lambda values: len(values) > 0 and all(value > 0 for value in values), "numbers above 0")


def record_from_mapping(record_type: type[Record], mapping: object, path: str) -> Record:
    """Build `record_type` from parsed JSON.

    Raises:
        SpecError: not a mapping, or a field unknown (naming the nearest), missing or wrong.
    """
    if not isinstance(mapping, Mapping):
        raise SpecError(f"{path} is {_shown(mapping)}: expected a mapping of fields; {ADVICE}.")
    fields = dataclasses.fields(record_type)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    for key in mapping:
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise SpecError(f"{path} has an unknown field {key!r}: the nearest known one is {nearest!r}; {ADVICE}.")
    for field in fields:
        if field.name not in mapping and not _may_be_left_out(field):
            raise SpecError(f"{path}.{field.name} is missing: every field of {path} is required; {ADVICE}.")
    hints = typing.get_type_hints(record_type, include_extras=True)
    values = {name: _converted(mapping[name], hints[name], f"{path}.{name}") for name in names if name in mapping}
    return record_type(**values)


def check_record(record: object) -> None:
    """Called from `__post_init__`: types and rules of every field; numbers and tuples are normalised in place."""
    path = getattr(record, "PATH")  # noqa: B009 (not a field: each record declares where it stands in the spec)
    hints = typing.get_type_hints(type(record), include_extras=True)
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        name = f"{path}.{field.name}"
        value = _converted(getattr(record, field.name), hints[field.name], name)
        object.__setattr__(record, field.name, value)


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """A rule between fields.

    Raises:
        SpecError: `condition` does not hold.
    """
    if not condition:
        raise SpecError(f"{name} is {_shown(value)}: expected {expected}; {ADVICE}.")


def mapping_from_record(record: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars, ready for JSON."""
    values = {
        field.name: getattr(record, field.name) for field in dataclasses.fields(record) if _is_stated(record, field)
    }
    return {name: _plain(value) for name, value in values.items()}


def _is_stated(record: Any, field: dataclasses.Field) -> bool:
    return not (_may_be_left_out(field) and getattr(record, field.name) is None)


def _may_be_left_out(field: dataclasses.Field) -> bool:
    return field.default is None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return mapping_from_record(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _converted(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint` says, or SpecError."""
    if typing.get_origin(hint) is Annotated:
        return _converted_by_rule(value, hint, path)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _converted_optional(value, hint, path)
    if typing.get_origin(hint) is tuple:
        return _converted_tuple(value, typing.get_args(hint), path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else record_from_mapping(hint, value, path)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    names = {float: "a finite number", int: "a whole number", str: "a text", bool: "true or false"}
    raise SpecError(f"{path} is {_shown(value)}: expected {names[hint]}; {ADVICE}.")


def _converted_by_rule(value: Any, hint: Any, path: str) -> Any:
    value = _converted(value, hint.__origin__, path)
    for rule in hint.__metadata__:
        require(rule.accepts(value), path, value, rule.expected)
    return value


def _converted_optional(value: Any, hint: Any, path: str) -> Any:
    if value is None:
        return None
    inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    return _converted(value, inner[0], path)


def _converted_tuple(value: Any, arguments: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{path} is {_shown(value)}: expected a list; {ADVICE}.")
    if arguments[-1] is Ellipsis:
        return tuple(_converted(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise SpecError(f"{path} has {len(value)} entries: expected {len(arguments)}; {ADVICE}.")
    pairs = zip(value, arguments, strict=True)
    return tuple(_converted(item, argument, f"{path}[{index}]") for index, (item, argument) in enumerate(pairs))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
