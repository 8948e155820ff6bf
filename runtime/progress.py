"""Progress bars where tqdm is installed; the same work without them where it is not, as on a bare device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


@contextlib.contextmanager
def progress_bar(total: int | None, title: str, unit: str = "image") -> Iterator[Callable[[int], object]]:
    """A bar on stderr that leaves no trace when it is done; yields the function that moves it on by so many units."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=total, desc=title, unit=unit, leave=False) as bar:
        yield bar.update


def progress(items: Iterable[Item], total: int, title: str, unit: str = "image") -> Iterator[Item]:
    """Yield the `total` items, moving a bar on by one for each."""
    with progress_bar(total, title, unit) as advance:
        for item in items:
            yield item
            advance(1)
