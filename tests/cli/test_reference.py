"""docs/configuration.md is what the structs say, and the doctor knows every wall."""

import os
from pathlib import Path

import pytest

from dayfly.cli.machine import EXTRAS, WALLS, processors
from dayfly.cli.reference import FUNCTION_ABOUT, fields_of, main, page
from dayfly.core.decide import isolate
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.settings import Settings


def test_the_page_is_the_generated_one():
    written = Path(__file__).parents[2].joinpath("docs/configuration.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m dayfly.cli.reference"


def test_the_page_is_written_where_it_is_told_and_an_option_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["page.md"])
    assert Path("page.md").read_text(encoding="utf-8") == page()
    for words in (["--help"], ["-h"], ["a.md", "b.md"]):
        with pytest.raises(SystemExit, match="usage"):
            main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_a_handler_is_searched_for_and_has_no_default_name():
    handler = next(field for field in fields_of(FunctionConfig) if field.name == "handler")
    assert handler.default == ""
    assert "Default: searched for (see [functions.md](functions.md))" in page()


def test_every_setting_is_described():
    assert set(FUNCTION_ABOUT) == set(FunctionConfig.__struct_encode_fields__)
    for struct in (Settings, FunctionConfig):
        assert [field.name for field in fields_of(struct) if not field.about] == []


def test_the_doctor_can_explain_every_wall():
    assert set(WALLS) == {*isolate.WALLS, "egress_internet"}
    assert set(EXTRAS) == set(isolate.EXTRAS)


def test_the_doctor_says_how_it_would_know_that_processors_are_short(tmp_path):
    (hidden,) = processors(str(tmp_path))
    assert hidden.state == "warning" and "hidden" in hidden.found
    process = tmp_path / "proc" / str(os.getpid())
    process.mkdir(parents=True)
    (process / "stat").write_text(Path("/proc/self/stat").read_text())
    (guessed,) = processors(str(tmp_path))
    assert guessed.state == "warning" and "no /proc/pressure/cpu" in guessed.found and guessed.remedy
    (tmp_path / "proc/pressure").mkdir()
    (tmp_path / "proc/pressure/cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
    (counted,) = processors(str(tmp_path))
    assert counted.state == "ok" and counted.costs == ""
