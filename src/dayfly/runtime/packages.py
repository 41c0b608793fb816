"""Modules of a layer: which of them an init imported, and how a template of packages imports them again.

What is recorded is said by an instance that ran user code, and believed no further than that: names, of modules that lie in the layer.
Used by agent.py.
"""

import os
import sys

MODULES_MAX = 2000
BYTES_MAX = 32 * 1024  # of all names together: half of what a frame's meta may have
NAME_CHARACTERS_MAX = 200


def imported(layer_root: str) -> list[str]:
    """Names of the modules in sys.modules that come from the layer, in the order in which their import ended."""
    found: list[str] = []
    room, beginning = BYTES_MAX, layer_root + "/"
    for name, module in list(sys.modules.items()):
        try:
            origin = module.__spec__.origin  # type: ignore[union-attr]
        except Exception:  # noqa: S112 - user code puts anything there
            continue
        if type(origin) is str and origin.startswith(beginning) and _is_name(name):
            room -= len(name) + 1
            if room < 0 or len(found) >= MODULES_MAX:
                break
            found.append(name)
    return found


def _is_name(name: "object") -> bool:
    if type(name) is not str or len(name) > NAME_CHARACTERS_MAX or not name.isascii():
        return False
    return all(part.isidentifier() for part in name.split("."))


def import_all(names: tuple[str, ...], layer_root: str) -> None:
    """Import those that lie in the layer. One that cannot be imported is left out: an instance that needs it meets the error itself."""
    there = {entry.partition(".")[0] for entry in os.listdir(layer_root)}
    for name in names:
        if name not in sys.modules and name.partition(".")[0] in there:
            try:
                __import__(name)
            except BaseException:  # noqa: S112 - whatever it raises, also SystemExit
                continue
