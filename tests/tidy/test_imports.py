"""What an instance pays before user code runs: the import budget of runtime/."""

import subprocess
import sys

import pytest

from tests.tidy.sources import REPOSITORY, python_files

# In a fresh interpreter, measured once on two slow cores: asyncio +60 ms, http +45, dataclasses +20, typing +15.
# `re`, `enum` and `functools` are not here because `json` brings them, and every call needs json.
HEAVY = {
    *("asyncio", "concurrent.futures", "ctypes", "dataclasses", "datetime", "decimal", "email", "http", "inspect", "logging"),
    *("multiprocessing", "pathlib", "random", "shutil", "ssl", "subprocess", "tempfile", "tokenize", "typing", "unittest"),
    *("urllib.request", "uuid", "zipfile"),
}
MODULES_MAX = 45  # modules that importing one runtime module may add to a bare interpreter; json alone is about 20

PROGRAM = """
import sys
before = set(sys.modules)
sys.path.insert(0, {source!r})
__import__({module!r})
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def loaded_by(module: str) -> set[str]:
    """Names that importing `module` adds to a bare interpreter, without our own."""
    program = PROGRAM.format(source=str(REPOSITORY / "src"), module=module)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return {name for name in done.stdout.split() if name.partition(".")[0] != "dayfly"}


def runtime_modules() -> list[str]:
    names = [name for name in python_files("src/dayfly/runtime/") if not name.endswith("__init__.py")]
    return [name.removeprefix("src/").removesuffix(".py").replace("/", ".") for name in names]


@pytest.mark.parametrize("module", runtime_modules())
def test_luggage_is_light(module: str) -> None:
    """Whatever travels into a sandbox loads nothing heavy when it is imported; it may do so later, when a function needs it."""
    loaded = loaded_by(module)
    assert not loaded & HEAVY, f"{module} loads {sorted(loaded & HEAVY)}: import it inside the function that needs it"
    assert len(loaded) <= MODULES_MAX, f"{module} loads {len(loaded)} modules: {sorted(loaded)}"
