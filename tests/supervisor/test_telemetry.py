"""The platform's log: one event a line, and nothing secret in any of them."""

import json
import logging

import pytest
import structlog

from dayfly import telemetry


@pytest.fixture
def lines(capsys):
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)


def test_secrets_are_blanked_by_name_and_tokens_wherever_they_stand(lines):
    telemetry.configure("control", json=True)
    structlog.get_logger().info(
        "made dfy_ab12_verysecret", token="x", headers={"Authorization": "Bearer abcdefghijk"}, text="Bearer abcdefghijk", tokens=3
    )
    logging.getLogger("library").warning("got %s", "dfy_ab12_verysecret")
    first, second = lines()
    assert first["event"] == "made dfy_ab12_***"
    assert (first["token"], first["headers"], first["text"], first["tokens"]) == ("***", {"Authorization": "***"}, "***", 3)
    assert second["event"] == "got dfy_ab12_***"
    assert first["role"] == second["role"] == "control"


def test_a_text_line_cannot_be_forged(capsys, lines):
    telemetry.configure("gateway", json=False)
    structlog.get_logger().info("name", value="a\n2026-01-01 error gateway forged\x1b[2J")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_levels_and_long_values_are_bounded(lines):
    telemetry.configure("gateway", "warning", json=True)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", text="x" * 100_000, deep=[[[[[[1]]]]]])
    (only,) = lines()
    assert len(only["text"]) == telemetry.TEXT_CHARACTERS_MAX
