"""A bounded table whose values are made once for each key, by whichever thread comes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from flashmla_hub.forks import Lock


class Bounded:
    """A bounded mapping, oldest use first out. Lookups by many threads, values made once a key."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = Lock()
        self._items: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, Lock] = {}

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def get_or_make(self, key: Any, make: Any) -> Any:
        found = self.get(key)
        if found is not None:
            return found
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:  # other keys go on meanwhile: a bind may compile for seconds
            found = self.get(key)
            if found is not None:
                return found
            try:
                found = make()
                if not getattr(found, "passing", False):
                    self.put(key, found)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return found

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._items[key] = value
            while len(self._items) > self.limit:
                self._items.popitem(last=False)

    def __contains__(self, key: Any) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        with self._lock:
            self._items.clear()
