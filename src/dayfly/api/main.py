"""The control process as `dayfly up` starts it: the control role with its HTTP face. Only an introduction."""

from collections.abc import Callable

from dayfly.api.app import create_app
from dayfly.control import main
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None]) -> None:
    """See control/main.py."""
    main.run(settings, layout, lifeline=lifeline, ready=ready, face=create_app)
