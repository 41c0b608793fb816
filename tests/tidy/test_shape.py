"""The shape of the code: lengths, docstrings, where `async` may stand. New code keeps the rules; old exceptions only shrink."""

import ast

import pytest

from tests.tidy import ratchet
from tests.tidy.sources import HOUSE, committed_files, functions_in, python_files, text_of, tree_of

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
PARAMETERS_MAX = 6
SPEAKS_FOR_ITSELF_LINES = 5


def measure() -> dict[str, dict[str, int]]:
    """Rule → what breaks it today → by how much."""
    return {
        "function_lines": long_functions(),
        "module_lines": long_modules(),
        "parameters": wide_functions(),
        "docstrings": undocumented(),
    }


def long_functions() -> dict[str, int]:
    functions = (function for name in python_files() for function in functions_in(name))
    return {function.key: function.lines for function in functions if function.lines > FUNCTION_LINES_MAX}


def long_modules() -> dict[str, int]:
    sizes = {name: text_of(name).count("\n") for name in python_files()}
    return {name: size for name, size in sizes.items() if size > MODULE_LINES_MAX}


def wide_functions() -> dict[str, int]:
    """More than six parameters; keyword-only ones with a default are options, not parameters one must know."""
    found = {}
    for name in python_files("src/dayfly/"):
        for function in functions_in(name):
            arguments = function.node.args
            wanted = [a for a in arguments.posonlyargs + arguments.args if a.arg not in ("self", "cls")]
            required = sum(default is None for default in arguments.kw_defaults)
            if len(wanted) + required > PARAMETERS_MAX and not _is_command(function.node):
                found[function.key] = len(wanted) + required
    return found


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A command or route: its parameters are what a user may type, not what a caller must know."""
    return bool(node.decorator_list)


def undocumented() -> dict[str, int]:
    """Modules (of more than a few lines) without an opening text, and per file how many public functions and classes lack theirs.

    One-line properties and obvious overrides speak for themselves; so does a method of a documented Protocol's implementation.
    """
    found = {}
    for name in python_files():
        if text_of(name).count("\n") > SPEAKS_FOR_ITSELF_LINES and ast.get_docstring(tree_of(name)) is None:
            found[name] = 1
    for name in python_files("src/dayfly/"):
        functions = [f for f in functions_in(name) if f.public and "." not in f.name and f.lines > 3]
        missing = [f for f in functions if not ast.get_docstring(f.node)]
        classes = [n for n in tree_of(name).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        missing_classes = [n for n in classes if len(n.body) > 3 and not ast.get_docstring(n)]
        if missing or missing_classes:
            found[name] = found.get(name, 0) + len(missing) + len(missing_classes)
    return found


ADVICE = {
    "function_lines": f"A function fits a screen ({FUNCTION_LINES_MAX} lines): give a part of it a name.",
    "module_lines": f"A module has one idea and at most {MODULE_LINES_MAX} lines: split it along its nouns.",
    "parameters": f"Six parameters are many (at most {PARAMETERS_MAX}): make a small frozen group.",
    "docstrings": "A module opens with what it is for and who calls it; public functions and classes say shapes, units, errors.",
}


@pytest.mark.parametrize("rule", sorted(ADVICE))
def test_code_keeps_its_shape_and_exceptions_only_shrink(rule: str) -> None:
    complaints = ratchet.complaints(rule, measure()[rule], ADVICE[rule])
    assert not complaints, "\n" + "\n".join(complaints)


def test_core_has_no_async_because_it_decides_and_never_waits() -> None:
    waiting = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    found = [
        f"{name}:{node.lineno}"
        for name in python_files("src/dayfly/core/")
        for node in ast.walk(tree_of(name))
        if isinstance(node, waiting)
    ]
    assert not found, f"core/ decides and never waits; move the waiting to the caller: {found}"


def test_core_takes_the_time_as_an_argument() -> None:
    """datetime may convert, but never ask for the clock."""
    found = [
        f"{name}:{node.lineno}"
        for name in python_files("src/dayfly/core/")
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today") and isinstance(node.value, ast.Name)
        if node.value.id in ("datetime", "date", "dt")
    ]
    assert not found, f"core/ gets `now` from its caller: {found}"


def test_packages_open_empty_so_that_an_import_costs_what_it_names() -> None:
    """Only dayfly/__init__.py holds something: the version."""
    full = [name for name in python_files("src/dayfly/") if name.endswith("/__init__.py") and text_of(name).strip()]
    assert full == ["src/dayfly/__init__.py"], "an __init__.py that imports makes circles and slow starts: leave it empty"
    assert len(text_of(full[0]).splitlines()) <= 5


def test_nothing_is_left_for_later_in_the_code() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "X" * 3]
    found = []
    for name in committed_files():
        if not name.endswith((".py", ".sh", ".toml", ".sql", ".cfg")) and not name.startswith((*HOUSE, ".ci/")):
            continue
        for number, line in enumerate(text_of(name).splitlines(), 1):
            words = line.replace(":", " ").replace("(", " ").replace("#", " ").split()
            found += [f"{name}:{number}: {line.strip()}" for mark in marks if mark in words]
    assert not found, "do it, or open an issue and delete the mark:\n" + "\n".join(found)
