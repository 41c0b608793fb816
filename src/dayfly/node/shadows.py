"""Whether a function's code may have a module by the name of one that its packages or the interpreter have, too.

The function's own would come first; in a process that has imported the other already, it would never come. So such a function does
not start from a template of packages. Judged by the names of entries in two read-only folders, which no one can change; nothing in
them is opened. Called by node/instances.py.
"""

import functools
import itertools
import os
import sys

from dayfly.core.model.layout import Layout

PAIRS_MAX = 256  # of code and layer, whose comparisons are remembered
NAMES_MAX = 4096  # of one folder that are looked at
NO_MODULES = frozenset(("__pycache__",))


class Shadows:
    """Compares by digest; knows what it compared lately."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.between = functools.lru_cache(maxsize=PAIRS_MAX)(self._between)

    def __repr__(self) -> str:
        return f"<Shadows {self.between.cache_info()}>"

    def _between(self, code: str, layer: str) -> bool:
        """True also where that cannot be told."""
        try:
            own, packages = _names(f"{self._layout.code}/{code}"), _names(f"{self._layout.layers}/{layer}")
        except OSError:
            return True
        return not own.isdisjoint(packages | sys.stdlib_module_names)


def _names(folder: str) -> set[str]:
    """What could be imported from it, as far as the names of its entries tell. Raises OSError, also when there are too many."""
    with os.scandir(folder) as entries:
        found = [entry.name.partition(".")[0] for entry in itertools.islice(entries, NAMES_MAX + 1)]
    if len(found) > NAMES_MAX:
        raise OSError(f"more than {NAMES_MAX} entries")
    return set(found) - NO_MODULES
