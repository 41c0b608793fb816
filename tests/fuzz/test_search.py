"""A bounded search with coverage as the guide, in every run of the tests; and what longer ones have found, which must stay mended.

Where there is no atheris (docs/http.md says where), the kept bytes and the seeds are all that is tried.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.found import FOUND
from tests.fuzz.targets import TARGETS, check_planted

SECONDS = int(os.environ.get("DAYFLY_FUZZ_SECONDS", "2"))
HOUSE = Path(__file__).resolve().parents[2]


def search(name: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """One search in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.search", name, f"--seconds={seconds}"]
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=seconds + 60, check=False)


KEPT = [
    pytest.param(name, data, id=f"{name}-{number}")
    for name in TARGETS
    for number, data in enumerate((*FOUND.get(name, ()), *TARGETS[name].seeds, b""))
]


@pytest.mark.parametrize(("name", "data"), KEPT)
def test_kept_bytes_keep_the_laws(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


def test_what_is_kept_belongs_to_a_target() -> None:
    assert set(FOUND) <= set(TARGETS)


needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or machine")


@needs_atheris
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 90)
@pytest.mark.parametrize("name", TARGETS)
def test_a_search_finds_nothing(name: str) -> None:
    said = search(name, SECONDS)
    found = [line for line in said.stderr.splitlines() if line.startswith("FOUND ")]
    assert said.returncode == 0 and not found, "\n".join(found) or said.stderr[-3000:]
    assert "stat::number_of_executed_units" in said.stderr


@needs_atheris
@pytest.mark.slow
def test_a_search_finds_what_is_there_by_the_branches_that_lead_to_it() -> None:
    """Five letters in a row, each behind a branch of its own: blind guessing would take weeks."""
    said = search("planted", 60)
    assert said.returncode != 0 and "FOUND planted: b'" in said.stderr, said.stderr[-3000:]
    kept = said.stderr.partition("FOUND planted: ")[2].splitlines()[0]
    with pytest.raises(AssertionError):
        check_planted(eval(kept))
