"""Reads the data.yaml of a YOLO data set: the part of YAML that such files are written in, and nothing else.

Read are the keys path, train, val, test, names and nc; others, and what is indented below them, are passed over.
Values: a plain or quoted text; a list, in brackets or as lines that begin with "-"; for names also a mapping from 0, 1,
2, ... to names, in braces or as indented lines.
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.annotation_faults import AnnotationFault
from runtime.class_names import checked_names
from runtime.json_values import shown

KEYS = ("path", "train", "val", "test", "names", "nc")
SPLITS = ("train", "val", "test")
TOP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*:(?:\s+(.*)|)$")
ITEM = re.compile(r"\s*-\s+(.*)$")
PAIR = re.compile(r"\s*(['\"]?)(\d+)\1\s*:\s*(.*)$")
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"")
MAX_BYTES = 4 << 20


class YoloFile:
    """What a data.yaml says. names: class names. path: folder that the splits are in, as written. splits: the folders
    or lists of each split, as written."""

    def __init__(self, file: Path) -> None:
        """Raises: AnnotationFault, one sentence that names the file and the key at fault."""
        self.file = file
        found = self._values(self._text())
        for key in found:
            if key not in KEYS:
                raise AssertionError(key)
        self.path = self._one(found, "path") if "path" in found else ""
        self.splits = {key: self._list(found, key) for key in SPLITS if found.get(key)}
        self.names = checked_names(self._names(found), file)
        if "nc" in found and self._one(found, "nc") != str(len(self.names)):
            raise self._error(f"says nc: {self._one(found, 'nc')}, but names {len(self.names)} classes; correct one")

    def _text(self) -> str:
        try:
            with self.file.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise self._error(f"has more than {MAX_BYTES >> 20} MiB, expected a short data.yaml")
            return data.decode("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise self._error(f"cannot be read ({reason}); give a YOLO data.yaml") from error

    def _values(self, text: str) -> dict[str, list[str]]:
        """The lines of each known key: what stands behind the colon, then what is indented or listed below it."""
        found: dict[str, list[str]] = {}
        lines: list[str] | None = None
        for number, raw in enumerate(text.splitlines(), start=1):
            line = _without_comment(raw).rstrip()
            if not line or line in ("---", "..."):
                continue
            top = None if line[0] in " \t-]}" or (lines and _is_open(" ".join(lines))) else TOP.fullmatch(line)
            if top is not None:
                key, value = top[1], (top[2] or "").strip()
                if key in found:
                    raise self._error(f'line {number}: "{key}" appears twice; keep one')
                lines = [value] if value else []
                if key in KEYS:
                    found[key] = lines
            elif lines is None or (line[0] not in " \t-]}" and not _is_open(" ".join(lines))):
                raise self._error(f"line {number}: {shown(line)}, expected `key: value`")
            else:
                lines.append(line)
        return found

    def _one(self, found: dict[str, list[str]], key: str) -> str:
        lines = found[key]
        if len(lines) != 1 or lines[0][0] in "[{|>&*!":
            raise self._error(f"{key} is {shown(' '.join(lines))}, expected one text")
        return self._scalar(lines[0], key)

    def _list(self, found: dict[str, list[str]], key: str) -> list[str]:
        """One text or a list of them."""
        lines = found[key]
        joined = " ".join(lines).strip()
        if joined.startswith("["):
            return [self._scalar(item, key) for item in self._bracketed(joined, "[]", key)]
        items = [ITEM.fullmatch(line) for line in lines]
        if all(items):
            return [self._scalar(item[1], key) for item in items if item is not None]
        return [self._one(found, key)]

    def _names(self, found: dict[str, list[str]]) -> list[str]:
        if not found.get("names"):
            raise self._error("has no names; list the class names under `names:`")
        joined = " ".join(found["names"]).strip()
        if joined.startswith("{"):
            pairs = [PAIR.fullmatch(item) for item in self._bracketed(joined, "{}", "names")]
        else:
            pairs = [PAIR.fullmatch(line) for line in found["names"]]
            if joined.startswith("[") or not any(pairs):
                return self._list(found, "names")
        if not all(pairs):
            raise self._error(f"names is {shown(joined)}, expected a list, or lines like `0: name`")
        named = {int(pair[2]): self._scalar(pair[3], "names") for pair in pairs if pair is not None}
        if sorted(named) != list(range(len(pairs))):
            raise self._error(f"names has the numbers {shown(sorted(named))}, expected 0, 1, 2, ... each once")
        return [named[number] for number in range(len(named))]

    def _bracketed(self, text: str, brackets: str, key: str) -> list[str]:
        """The items between brackets; commas in quotes do not part them."""
        if len(text) < 2 or text[-1] != brackets[1]:
            raise self._error(f"{key} is {shown(text)}, expected {brackets[0]}...{brackets[1]}")
        items, begin, index = [], 1, 1
        while index < len(text) - 1:
            if text[index] in "'\"" and not text[begin:index].strip(" 0123456789:"):  # begins an item, or its name
                quoted = QUOTED.match(text, index)
                if quoted is None:
                    raise self._error(f"{key} is {shown(text)}, in which a quote does not end")
                index = quoted.end()
                continue
            if text[index] == ",":
                items.append(text[begin:index])
                begin = index + 1
            index += 1
        items.append(text[begin:-1])
        return [item.strip() for item in items if item.strip()]

    def _scalar(self, text: str, key: str) -> str:
        """A plain or quoted text."""
        text = text.strip()
        if len(text) >= 2 and text[0] == text[-1] == "'":
            return text[1:-1].replace("''", "'")
        if len(text) >= 2 and text[0] == text[-1] == '"':
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if not text or text[0] in "[]{}&*!|>%@`'\"" or ": " in text:
            raise self._error(f"{key} has {shown(text)}, expected a plain or quoted text")
        return text

    def _error(self, what: str) -> AnnotationFault:
        return AnnotationFault("unreadable-annotations", self.file, what)


def _without_comment(line: str) -> str:
    """Cuts at a # that begins a comment: at the start or behind a blank, and not inside quotes."""
    quote = ""
    for index, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (index == 0 or not line[index - 1].isalnum()):
            quote = character
        elif character == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def _is_open(text: str) -> bool:
    """Whether a list or mapping has begun in brackets and not ended."""
    text = text.strip()
    return text.startswith(("[", "{")) and not text.endswith(("]", "}"))
