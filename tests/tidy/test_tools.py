"""The tools that read our code find nothing: formatting rules (ruff), types (mypy), floors (import-linter), shell (bash -n)."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.tidy.sources import REPOSITORY, committed_files, text_of

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str, timeout_seconds: float = 110.0, cache: Path) -> str:
    """Run a tool in the repository and return '' when it found nothing, else all it said."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "RUFF_CACHE_DIR": str(cache), "MYPY_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_seconds, env=environment)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_finds_nothing(tmp_path: Path) -> None:
    said = run(str(SCRIPTS / "ruff"), "check", "--output-format=concise", ".", cache=tmp_path)
    assert not said, f"`ruff check --fix` mends most of it:\n{said}"


@pytest.mark.slow
def test_mypy_strict_finds_nothing(tmp_path: Path) -> None:
    said = run(sys.executable, "-m", "mypy", cache=tmp_path)
    assert not said, f"`mypy` in the repository's root shows the same:\n{said}"


def test_imports_keep_to_the_floors(tmp_path: Path) -> None:
    said = run(str(SCRIPTS / "lint-imports"), "--no-cache", cache=tmp_path)
    assert not said, f"the contracts are sentences in .importlinter; docs/architecture.md says why:\n{said[said.find('Contracts') :]}"


def test_every_shell_script_parses_and_stops_at_its_first_error(tmp_path: Path) -> None:
    for name in committed_files():
        if text_of(name).startswith("#!") and "bash" in text_of(name).splitlines()[0]:
            said = run("bash", "-n", name, cache=tmp_path)
            assert not said, said
            assert "set -euo pipefail" in text_of(name), f"{name}: a script that goes on after an error lies about its end"
            assert os.access(REPOSITORY / name, os.X_OK), f"{name}: chmod +x"
