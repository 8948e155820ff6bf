"""Reading small XML files that may come from anywhere: no document type, no entities, bounded size and depth."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_BYTES = 16 << 20
MAX_DEPTH = 50


class XmlError(Exception):
    """The file cannot be used; the text says why, without the file's name and without a full stop."""


def read_xml(path: Path) -> Element:
    """The root element.

    Raises:
        XmlError: missing, too large, no XML, or XML with a document type, entities of its own or endless nesting.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise XmlError(f"cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_BYTES:
        raise XmlError(f"has more than {MAX_BYTES >> 20} MiB, expected the annotations of one image")
    if not data.strip():
        raise XmlError("is empty")
    return _parsed(data)


def _parsed(data: bytes) -> Element:
    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise XmlError(f"has elements inside elements more than {MAX_DEPTH} deep")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise XmlError("has a document type or entities, which annotations need not have and attacks are made of")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError, AssertionError) as error:
        raise XmlError(f"is no valid XML ({error})") from error
