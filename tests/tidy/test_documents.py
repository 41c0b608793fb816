"""Documents that can fail: what a user can set, meet or call has its place in docs/, and docs/ names nothing that is gone."""

import ast
import re

import msgspec
import pytest

from dayfly.cli import reference
from dayfly.core.model.errors import BY_CODE, KINDS
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.settings import Settings
from tests.tidy.sources import REPOSITORY, committed_files, python_files, text_of, tree_of

ROUTERS = {"get", "post", "put", "patch", "delete", "route", "head"}


@pytest.mark.parametrize("struct", [Settings, FunctionConfig])
def test_every_setting_is_on_the_configuration_page(struct: type[msgspec.Struct]) -> None:
    text = text_of("docs/configuration.md")
    missing = [it.encode_name for it in msgspec.structs.fields(struct) if f"\n### {it.encode_name}\n" not in text]
    assert not missing, f"python -m dayfly.cli.reference writes the page; it lacks {missing}"


def test_the_configuration_page_is_what_the_settings_say_today() -> None:
    assert text_of("docs/configuration.md") == reference.page(), "python -m dayfly.cli.reference writes it"


def test_every_error_code_has_a_heading_in_the_order_of_the_table() -> None:
    headings = re.findall(r"^### `(\w+)`$", text_of("docs/errors.md"), re.MULTILINE)
    expected = [kind.code for kind in KINDS]
    assert sorted(headings) == sorted(expected), "docs/errors.md has one heading per code of core/model/errors.py"
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("code", [kind.code for kind in KINDS])
def test_an_error_is_documented_with_its_status_fault_and_hint(code: str) -> None:
    kind = BY_CODE[code]
    _, _, rest = text_of("docs/errors.md").partition(f"### `{code}`\n")
    entry = rest.split("\n### ")[0].split("\n## ")[0]
    facts = f"{kind.status} · {kind.fault.value}" + (" · retryable" if kind.retryable else "")
    assert entry.splitlines()[:1] == [facts], "the line below the heading says status, fault and whether trying again may help"
    assert kind.hint in entry, f"the hint is what the user sees: {kind.hint}"
    assert "\nExample: " in entry


def control_routes() -> set[str]:
    """METHOD and path of every route that api/ declares with a decorator such as @get("/path")."""
    found = set()
    for name in python_files("src/dayfly/api/"):
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= set(_routes_of(node))
    return found


def _routes_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    routes = []
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id in ROUTERS:
            paths = [a.value for a in decorator.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            routes += [f"{decorator.func.id.upper()} {path}" for path in paths if path.startswith("/")]
    return routes


def documented_routes() -> set[str]:
    """Paths of docs/api.md, with parameters as NAME-like capitals turned into {}."""
    paths = re.findall(r"(/(?:api/v1|metrics|openapi\.json|healthz)[^\s`?\[]*)", text_of("docs/api.md"))
    return {re.sub(r"/[A-Z]+(?=/|$)", "/{}", path.rstrip("/")) for path in paths}


def test_every_control_route_is_in_the_api_page() -> None:
    documented = documented_routes()
    missing = [route for route in sorted(control_routes()) if re.sub(r"\{[^}]+\}", "{}", route.split(" ", 1)[1]) not in documented]
    assert not missing, f"docs/api.md does not name {missing}"


def test_every_decision_has_its_own_number_and_three_parts() -> None:
    files = [name for name in committed_files() if name.startswith("docs/decisions/")]
    numbers = [name.split("/")[-1][:4] for name in files]
    assert all(re.fullmatch(r"docs/decisions/\d{4}-[a-z0-9-]+\.md", name) for name in files), files
    assert len(numbers) == len(set(numbers)), f"a number names one decision: {sorted(numbers)}"
    for name in files:
        for part in ("## Context", "## Decision", "## Consequences"):
            assert f"\n{part}" in text_of(name), f"{name} lacks {part!r}"


def test_documents_name_only_files_that_exist() -> None:
    """A path in backquotes that starts with one of our folders must be there (or stand for several, with *, N or capitals)."""
    pattern = re.compile(r"`((?:src/dayfly|docs|tests|scripts|bench|examples)/[\w./-]+)`")
    gone = [
        f"{name}: {path}"
        for name in committed_files()
        if name.endswith(".md") and name != "CHANGELOG.md"
        for path in pattern.findall(text_of(name))
        if not (REPOSITORY / path).exists() and not re.search(r"[A-Z]{2,}", path)
    ]
    assert not gone, f"documents speak of files that are not there: {gone}"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for name in committed_files():
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text_of(name)):
                if not ((REPOSITORY / name).parent / target).exists():
                    broken.append(f"{name}: {target}")
    assert not broken, broken
