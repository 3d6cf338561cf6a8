"""Which members are active together again and again: worth aligning by themselves. A runtime keeps one; no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from threading import Lock

TIMES = 3
CAPACITY = 64

Members = tuple[str, ...]


class Recurrences:
    """Lanes on any thread tell; sets that nobody has told of for longest are forgotten first."""

    def __init__(self, times: int = TIMES, capacity: int = CAPACITY) -> None:
        self.times = times
        self.capacity = capacity
        self._counts: OrderedDict[Members, int] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, active: Members) -> bool:
        """Has this set been told of often enough, just now? Says so once."""
        with self._lock:
            count = self._counts[active] = self._counts.get(active, 0) + 1
            self._counts.move_to_end(active)
            if len(self._counts) > self.capacity:
                self._counts.popitem(last=False)
            return count == self.times

    def forget_set(self, active: Members) -> None:
        """This one begins anew."""
        with self._lock:
            self._counts.pop(active, None)

    def forget(self, members: Collection[str]) -> None:
        """Sets with any of these begin anew."""
        with self._lock:
            for active in [active for active in self._counts if not set(active).isdisjoint(members)]:
                del self._counts[active]
