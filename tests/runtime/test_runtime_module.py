"""The handler's module: run without the import system where that comes to the same, and by it everywhere else."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.runtime import handler

NAME = "dayfly_test_module"
SOURCE = "import sys\nME = sys.modules[__name__]\nINITIALIZING = __spec__._initializing\ndef handler(event, context):\n    return 1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "pycache_prefix", None)  # as in a sandbox; scripts/test keeps its own elsewhere
    yield str(tmp_path)
    sys.modules.pop(NAME, None)


def described(module: types.ModuleType) -> dict[str, object]:
    """What user code can see of a module, as text where objects differ from run to run."""
    spec = module.__spec__
    assert spec is not None
    told = {name: repr(value) for name, value in vars(module).items() if name.startswith("__") and name != "__builtins__"}
    told |= {name: getattr(spec, name) for name in ("name", "origin", "has_location", "parent", "cached", "submodule_search_locations")}
    return told | {"code": module.handler.__code__, "initializing": (module.INITIALIZING, spec._initializing)}  # type: ignore[attr-defined]


def test_a_module_that_is_run_is_the_one_that_would_have_been_imported(folder: str) -> None:
    Path(folder, f"{NAME}.py").write_text(SOURCE)
    imported = handler.import_module(NAME)
    expected = described(imported)
    del sys.modules[NAME]
    assert handler.is_plain_file(NAME, folder)
    run = handler.run_file(NAME, folder)
    assert described(run) | {"__loader__": "", "__spec__": ""} == expected | {"__loader__": "", "__spec__": ""}
    assert type(run.__loader__) is type(imported.__loader__)
    assert run.ME is run is sys.modules[NAME]


@pytest.mark.parametrize("beside", [f"{NAME}/__init__.py", f"{NAME}.so", f"{NAME}.abi3.so", f"__pycache__/{NAME}.cpython-311.pyc"])
def test_what_python_would_look_at_first_is_left_to_python(folder: str, beside: str) -> None:
    for name in (f"{NAME}.py", beside):
        Path(folder, name).parent.mkdir(exist_ok=True)
        Path(folder, name).write_text(SOURCE)
    assert not handler.is_plain_file(NAME, folder)


@pytest.mark.parametrize("name", ["package.module", "__hello__", "not_there"])
def test_packages_frozen_modules_and_missing_files_are_left_to_python(folder: str, name: str) -> None:
    Path(folder, "__hello__.py").write_text(SOURCE)
    assert not handler.is_plain_file(name, folder)


def test_a_module_that_raises_is_not_there_afterwards(folder: str) -> None:
    Path(folder, f"{NAME}.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        handler.run_file(NAME, folder)
    assert NAME not in sys.modules


def test_a_module_may_put_another_object_in_its_place(folder: str) -> None:
    Path(folder, f"{NAME}.py").write_text("import sys, types\nsys.modules[__name__] = types.SimpleNamespace(other=True)\n")
    assert handler.run_file(NAME, folder).other


def test_source_in_another_encoding_is_read_as_its_cookie_says(folder: str) -> None:
    Path(folder, f"{NAME}.py").write_bytes("# -*- coding: latin-1 -*-\nWORD = 'é'\n".encode("latin-1"))
    assert handler.run_file(NAME, folder).WORD == "é"
