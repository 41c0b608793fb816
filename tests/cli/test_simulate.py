"""dayfly simulate: what it prints for a small trace, what it draws, what it refuses."""

import json
import sys

import pytest

HOURLY = "time,function,duration_ms,memory_mb,start_ms\n" + "".join(f"{3600 * hour},report,50,1024,2000\n" for hour in range(48))


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HOURLY)
    return str(path)


def test_policies_are_compared_in_a_table(run, trace):
    done = run("simulate", trace)
    assert done.code == 0
    heads, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert heads[:5] == ["policy", "cold", "p50", "p75", "p90"]
    by_name = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(by_name) == ["fixed-10min", "fixed-1min", "none", "percentiles", "histogram"]
    assert by_name["fixed-10min"]["cold"] == by_name["none"]["cold"] == "100.00%"
    assert float(by_name["histogram"]["cold"].rstrip("%")) < 15
    assert float(by_name["fixed-10min"]["wasted GB·h"]) == pytest.approx(8.0, abs=0.2)
    assert "48 calls of 1 functions" in done.err


def test_json_has_the_distribution_and_the_instances_over_time(run, trace):
    done = run("simulate", trace, "--json", "--policy", "histogram", "--policy", "none")
    document = json.loads(done.out)
    assert (document["functions"], document["calls"]) == (1, 48)
    none, histogram = document["policies"]
    assert [none["name"], histogram["name"]] == ["none", "histogram"]
    assert set(none["cold_share_of_functions"]) == {"p25", "p50", "p75", "p90", "p99"}
    assert len(histogram["instances"]) == 288 and max(histogram["instances"]) == 1 and histogram["ahead"] > 30


def test_a_memory_bound_adds_the_policy_that_keeps_to_it(run, trace):
    done = run("simulate", trace, "--memory-gb", "0.5", "--json")
    assert [policy["name"] for policy in json.loads(done.out)["policies"]][-1] == "histogram-bounded"


@pytest.mark.parametrize(("name", "begins"), [("plot.svg", b"<?xml"), ("plot.PNG", b"\x89PNG")])
def test_it_draws_svg_and_png(run, trace, tmp_path, name, begins):
    done = run("simulate", trace, "--plot", str(tmp_path / name))
    assert done.code == 0 and f"drawn: {tmp_path / name}" in done.err
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(begins) and len(drawn) > 10_000


def test_without_matplotlib_it_says_what_to_install_before_it_works(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("simulate", str(tmp_path / "not there.csv"), "--plot", "x.svg")
    assert done.code == 5
    assert "pip install 'dayfly[plot]'" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "best"], "There is no policy 'best'."),
        (["--policy", "histogram-bounded"], "--memory-gb"),
        (["--plot", "x.pdf"], ".svg or .png"),
        (["--memory-gb", "0"], "0"),
    ],
)
def test_what_cannot_be_done_is_said(run, trace, words, said):
    done = run("simulate", trace, *words)
    assert done.code == 2 and said in done.err


def test_a_drawing_that_cannot_be_written_is_an_error(run, trace, tmp_path):
    done = run("simulate", trace, "--plot", str(tmp_path / "no folder" / "x.svg"))
    assert done.code == 2 and "Cannot write" in done.err


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"a,b\n1,2\n", b"time,function\nx,y\n"])
def test_what_is_no_trace_is_said_with_its_line(run, tmp_path, content):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    done = run("simulate", str(path))
    assert done.code == 2
    assert "error: " in done.err and "docs/cli.md" in done.err


def test_a_day_of_azures_format_is_read(run, tmp_path):
    path = tmp_path / "azure.csv"
    heads = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 1441)))
    path.write_text(heads + "\n" + "o,a,f,timer," + ",".join("1" if minute % 15 == 0 else "0" for minute in range(1440)) + "\n")
    done = run("simulate", str(path), "--json", "--policy", "histogram", "--start-ms", "1000")
    (histogram,) = json.loads(done.out)["policies"]
    assert histogram["cold"] < 10 and json.loads(done.out)["calls"] == 96
