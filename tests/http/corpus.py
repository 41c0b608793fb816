"""The corpus: every case, by its name."""

from tests.http import field_cases, framing_cases, line_cases
from tests.http.case import Case

ALL: list[Case] = [*line_cases.CASES, *field_cases.CASES, *framing_cases.CASES]
CASES: dict[str, Case] = {case.name: case for case in ALL}
assert len(CASES) == len(ALL), "every case has a name of its own"
