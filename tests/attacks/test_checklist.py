"""The list of attacks is whole: each is tried by a test that is there, and each test is on the list."""

import ast
from pathlib import Path

from tests.attacks.checklist import ATTACKS

# What shows that the tests around it prove something.
CONTROLS = {
    "test_public_addresses_are_reached_with_egress_only",
    "test_nothing_of_all_this_is_left_on_the_machine",
    "test_no_defect_was_found_by_all_this",
}


def attempts_of(path: Path) -> set[tuple[str, str]]:
    theme = path.stem.removeprefix("test_")
    found = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {(theme, name) for name in found if name.startswith("test_") and name not in CONTROLS}


def test_every_attack_of_the_list_is_tried_and_every_test_is_on_the_list() -> None:
    there = {test for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_checklist.py" for test in attempts_of(path)}
    listed = {(theme, name) for _, theme, name in ATTACKS}
    assert listed == there
    assert len({words for words, _, _ in ATTACKS}) == len(ATTACKS)
