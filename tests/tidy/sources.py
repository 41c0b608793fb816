"""What the style tests look at: our files as git knows them, and the functions in them. Only tests/tidy uses this."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HOUSE = ("src/dayfly/", "bench/", "examples/", "scripts/")  # code that the length rules hold for; tests may tell long stories


@dataclass(frozen=True)
class Function:
    """A function or method: `name` is Class.method where it applies; `lines` without decorators and docstring."""

    file: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    public: bool

    @property
    def key(self) -> str:
        return f"{self.file}::{self.name}"

    @property
    def lines(self) -> int:
        body = self.node.body
        end = self.node.end_lineno or self.node.lineno
        if ast.get_docstring(self.node, clean=False) is None:
            return end - self.node.lineno + 1
        return end - (body[0].end_lineno or body[0].lineno) + 1


@cache
def committed_files() -> tuple[str, ...]:
    """Paths below the repository's root: what git tracks or would track. Without git, everything but hidden folders."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        names = done.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file())
        names = [str(path) for path in paths if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)]
    return tuple(sorted(name for name in names if (REPOSITORY / name).is_file()))


def python_files(*under: str) -> tuple[str, ...]:
    """Our Python files whose path starts with one of `under` (default: the whole house, without tests)."""
    return tuple(name for name in committed_files() if name.endswith(".py") and name.startswith(under or HOUSE))


@cache
def text_of(name: str) -> str:
    """The file as text; bytes that are no UTF-8 are replaced (binary files are looked at too)."""
    return (REPOSITORY / name).read_text(encoding="utf-8", errors="replace")


@cache
def tree_of(name: str) -> ast.Module:
    """The file, parsed."""
    return ast.parse(text_of(name), filename=name)


def functions_in(name: str) -> Iterator[Function]:
    """Every function and method of a file, nested ones too. Public: no part of its dotted name starts with an underscore."""

    def walk(body: list[ast.stmt], prefix: str, public: bool) -> Iterator[Function]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.", public and not node.name.startswith("_"))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(name, f"{prefix}{node.name}", node, public and not node.name.startswith("_"))
                yield from walk(node.body, f"{prefix}{node.name}.", False)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from walk(list(ast.iter_child_nodes(node)), prefix, public)  # type: ignore[arg-type]

    yield from walk(tree_of(name).body, "", True)
