"""Removes what builds that came to nothing left below DATA/builds: files of the installer's uid, which control may not remove.

Runs as root in a folder of control's user, so it never follows a link and goes by descriptors. Must never touch a folder that only
holds requirements.txt (control has just prepared it) nor an `out` that was handed over (control is moving it). Called by build.py
after each failed build, in a child, and by server.py before the first one.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator

from dayfly.core.model.names import DIGEST

MADE = ("out", "cache")  # what a build makes in its folder


def remove(builds: str, layer: str) -> None:
    """Remove what the build of `layer` made in its folder, and the folder when nothing else is in it. Raises nothing."""
    with contextlib.suppress(OSError), _opened(builds) as above:
        _remove_made(above, layer)
        os.rmdir(layer, dir_fd=above)


def remove_all(builds: str, owner: int) -> list[str]:
    """At the node's start: whole folders of builds that the last node did not end. `owner`: control's uid. Returns their names."""
    found: list[str] = []
    with contextlib.suppress(OSError), _opened(builds) as above:
        for layer in os.listdir(above):
            if DIGEST.fullmatch(layer) and _is_strange(above, layer, owner):
                with contextlib.suppress(OSError):
                    _remove_made(above, layer)
                shutil.rmtree(layer, dir_fd=above, ignore_errors=True)
                found.append(layer)
    return found


@contextlib.contextmanager
def _opened(name: str, above: int | None = None) -> Iterator[int]:
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove_made(above: int, layer: str) -> None:
    with _opened(layer, above) as folder:
        for name in MADE:
            shutil.rmtree(name, dir_fd=folder, ignore_errors=True)


def _is_strange(above: int, layer: str, owner: int) -> bool:
    """Whether something that a build made is there and was not handed over."""
    with contextlib.suppress(OSError), _opened(layer, above) as folder:
        there = [name for name in MADE if name in os.listdir(folder)]
        return any(os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid != owner for name in there)
    return False
