"""Dependency layers: the canonical requirements of a tree, and one installer run per layer however many deploys ask for it.

What is installed is named by the digest of (requirements, interpreter, installer's release, platform), so the second deploy of
the same pins builds nothing. The installer runs in the node's sandbox (core/wire/node.py Build); control only reads its output.
"""

import asyncio
import os
import shutil
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import structlog

from dayfly.control.bundle import TEMPORARY_PREFIX, discard
from dayfly.control.folders import LAYER, Folders
from dayfly.control.node_client import NodeClient
from dayfly.control.vault import disk_refusal
from dayfly.core.manifest import requirements
from dayfly.core.model.errors import Refusal
from dayfly.core.wire.node import Build

MANIFEST_BYTES_MAX = 256 * 1024
OUTPUT_TAIL_LINES = 40

log = structlog.get_logger()


class Builder:
    """Makes layers. Concurrent deploys of one layer wait for the same build and all see its output."""

    def __init__(self, node: NodeClient, folders: Folders, timeout_seconds: float) -> None:
        self._node, self._folders, self._timeout = node, folders, timeout_seconds
        self._running: dict[str, _Job] = {}
        self.builds = 0  # installer runs since start

    async def ensure(self, digest: str, text: str, runtime: str, output: Callable[[str], None]) -> None:
        """Return when DATA/layers/`digest` is there; the caller holds it. Raises Refusal build_failed or start_failed."""
        if self._folders.exists((LAYER, digest)):
            return
        job = self._running.get(digest)
        if job is None:
            job = self._running[digest] = _Job()
            job.task = asyncio.create_task(self._build(digest, text, runtime, job))
            job.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # also when no deploy is left to ask
        job.listeners.append(output)
        try:
            await asyncio.shield(job.task)
        finally:
            job.listeners.remove(output)

    async def close(self) -> None:
        """End running builds."""
        tasks = [job.task for job in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _build(self, digest: str, text: str, runtime: str, job: "_Job") -> None:
        self.builds += 1
        place = self._folders.builds / digest
        try:
            await asyncio.to_thread(_prepare, place, text)
            built = await self._node.build(Build(layer=digest, runtime=runtime, timeout_seconds=self._timeout), job.told)
            if not built.ok:
                detail = f"The dependencies could not be installed: {built.detail or 'see the output'}."
                raise Refusal("build_failed", detail, extra={"output": job.tail})
            finished = await asyncio.to_thread(_finish, place / "out", self._folders.roots[LAYER])
            await self._folders.settle(finished, (LAYER, digest))
        finally:
            del self._running[digest]
            await asyncio.to_thread(_clean, place)


class _Job:
    """A running build and those who listen to it."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self.tail: list[str] = []

    def told(self, line: str) -> None:
        self.tail = [*self.tail[-OUTPUT_TAIL_LINES:], line]
        for listener in tuple(self.listeners):
            listener(line)


def read_table(folder: Path, name: str) -> dict[str, object]:
    """A TOML file of an unpacked bundle as a table; {} when there is none. Raises Refusal bad_config."""
    text = read_text(folder, name)
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("bad_config", f"{name} is no valid TOML: {error}.") from error


def read_text(folder: Path, name: str) -> str | None:
    """A small text file of an unpacked bundle; None when there is none. Raises Refusal bad_config."""
    path = folder / name
    if not path.is_file():
        return None
    if path.stat().st_size > MANIFEST_BYTES_MAX:
        raise Refusal("bad_config", f"{name} is over {MANIFEST_BYTES_MAX} bytes.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal("bad_config", f"{name} is not valid UTF-8: {error.reason} at byte {error.start}.") from error


def read_requirements(folder: Path) -> str:
    """The canonical requirements of an unpacked bundle: requirements.txt, else pyproject.toml; "" when it needs nothing."""
    text = read_text(folder, "requirements.txt")
    if text is not None:
        return requirements.canonical(text)
    return requirements.from_pyproject(read_table(folder, "pyproject.toml"))


def digest_of(text: str, runtime: str) -> str:
    """The layer's name on this machine; "" when nothing is required."""
    return requirements.layer_digest(text, runtime, f"uv {metadata.version('uv')}", sysconfig.get_platform()) if text else ""


def _prepare(place: Path, text: str) -> None:
    """DATA/builds/DIGEST with requirements.txt in it, nothing else."""
    try:
        discard(place)
        place.mkdir(mode=0o711)
        place.chmod(0o711)
        file = place / "requirements.txt"
        file.write_text(text)
        file.chmod(0o644)
    except OSError as error:
        raise disk_refusal(error, place) from error


def _finish(out: Path, layers: Path) -> Path:
    """Bring the installed tree below DATA/layers under a temporary name, on disk.

    A rename, when the tree is ours; when the installer ran as another user (its walls may demand it) it is copied, so that
    what the functions read belongs to the platform and cannot be changed by that user afterwards.
    """
    if not out.is_dir():
        raise Refusal("build_failed", "The installer left no folder behind.")
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=layers))
    try:
        if out.stat().st_uid == os.geteuid():
            out.rename(temporary)
        else:
            shutil.copytree(out, temporary, symlinks=True, dirs_exist_ok=True)
        _make_readonly(temporary)
        os.sync()
    except OSError as error:
        discard(temporary)
        raise disk_refusal(error, temporary) from error
    return temporary


def _make_readonly(tree: Path) -> None:
    """Files 0444 (programs 0555), folders 0555; special files are removed: a layer holds files, folders and links only."""
    for root, folders, files in os.walk(tree, topdown=False):
        for name in files:
            path = Path(root, name)
            if path.is_symlink():
                continue
            if not path.is_file():
                path.unlink()
                continue
            path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
        for name in folders:
            if not Path(root, name).is_symlink():
                Path(root, name).chmod(0o555)
    tree.chmod(0o555)


def _clean(place: Path) -> None:
    if not discard(place):  # files of another user: the node clears its own at its start
        log.warning("build_folder_left", folder=str(place))
