"""Fixtures of the runtime's tests: instances on this interpreter, or on each supported one, ended whatever happens."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.runtime.driver import Driver, interpreters

Start = Callable[..., Driver]


def _starter(python: str) -> Iterator[Start]:
    drivers: list[Driver] = []

    def start(code: str | dict[str, str], **options: Any) -> Driver:
        files = {"handler.py": code} if isinstance(code, str) else code
        driver = Driver(files, python=python, **options)
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.close()


@pytest.fixture(params=interpreters(), ids=lambda path: path.removesuffix("/bin/python").rpartition("/")[2])
def every(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start an instance, on each interpreter: `every(code, **boot)`."""
    yield from _starter(request.param)


@pytest.fixture
def start(python: str) -> Iterator[Start]:
    """Start an instance on this interpreter."""
    yield from _starter(python)
