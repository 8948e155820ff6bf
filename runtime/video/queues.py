"""The queue between two stages: bounded, closable from both ends, and it counts."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class QueueStats:
    """What the stage behind the queue found: items waiting when it came for the next one."""

    name: str
    size: int
    mean_depth: float
    max_depth: int
    dropped: int


class BoundedQueue(Generic[Item]):
    """At most `size` items. Full: `put` waits, or, with `keep_latest`, throws the oldest item away and counts it."""

    def __init__(self, name: str, size: int, *, keep_latest: bool = False) -> None:
        self.name = name
        self.size = size
        self._keep_latest = keep_latest
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._gets = self._depth_sum = self._depth_max = self._dropped = 0

    def put(self, item: Item) -> bool:
        """Add an item; False when the queue is closed and the item was not taken."""
        with self._changed:
            if self._keep_latest and len(self._items) >= self.size:
                self._items.popleft()
                self._dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.size)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Item | None:
        """The oldest item, waiting for one; None when the queue is closed and empty."""
        with self._changed:
            depth = len(self._items)
            self._changed.wait_for(lambda: self._closed or self._items)
            if not self._items:
                return None
            self._gets += 1
            self._depth_sum += depth
            self._depth_max = max(self._depth_max, depth)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items come in; those inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and throw away what is inside."""
        with self._changed:
            self._items.clear()
            self._closed = True
            self._changed.notify_all()

    def stats(self) -> QueueStats:
        with self._changed:
            mean = self._depth_sum / self._gets if self._gets else 0.0
            return QueueStats(self.name, self.size, mean, self._depth_max, self._dropped)
