"""docs/configuration.md is what the structs say, and the doctor knows every wall."""

from pathlib import Path

from dayfly.cli.machine import WALLS
from dayfly.cli.reference import FUNCTION_ABOUT, fields_of, page
from dayfly.core.decide import isolate
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.settings import Settings


def test_the_page_is_the_generated_one():
    written = Path(__file__).parents[2].joinpath("docs/configuration.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m dayfly.cli.reference"


def test_every_setting_is_described():
    assert set(FUNCTION_ABOUT) == set(FunctionConfig.__struct_fields__)
    for struct in (Settings, FunctionConfig):
        assert [field.name for field in fields_of(struct) if not field.about] == []


def test_the_doctor_can_explain_every_wall():
    assert set(WALLS) == {*isolate.WALLS, "egress_internet"}
