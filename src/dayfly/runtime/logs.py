"""The `logging` module's way to the gateway: a root handler that is there from the moment user code imports logging, not before.

`watch` puts a finder in front of sys.meta_path that waits for that one import and then goes away; a function that never logs pays
nothing for logging (15 ms). Text format: Lambda's `[INFO]\\t<time>Z\\t<call id>\\t<message>`. Used by agent.py.
"""

import sys
import time

from dayfly.runtime.answers import Answers
from dayfly.runtime.frames import LOGGING
from dayfly.runtime.output import Scope, send_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from logging import LogRecord
    from types import ModuleType
    from typing import Any

FORMAT = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
LEVEL_MAX = 0xFFFF


def watch(answers: Answers, scope: Scope) -> None:
    """Install the handler when logging is imported, or at once when the zygote brought it along."""
    logging = sys.modules.get("logging")
    if logging is not None:
        install(logging, answers, scope)
    else:
        sys.meta_path.insert(0, _Watch(answers, scope))


class _Watch:
    """A finder that finds nothing but `logging`, once."""

    def __init__(self, answers: Answers, scope: Scope) -> None:
        self._answers = answers
        self._scope = scope

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None) -> "ModuleSpec | None":
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        spec = next((found for finder in sys.meta_path if (found := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec, self._answers, self._scope)  # type: ignore[assignment]
        return spec


class _Loader:
    """The module's own loader, and the handler behind it."""

    def __init__(self, spec: "ModuleSpec", answers: Answers, scope: Scope) -> None:
        self._spec = spec
        self._loader: Any = spec.loader
        self._install = (answers, scope)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        install(module, *self._install)


def install(logging: "Any", answers: Answers, scope: Scope) -> None:
    """Give the root logger one handler that sends LOG frames (flag LOGGING, the record's level)."""

    class DayflyHandler(logging.Handler):  # type: ignore[misc]
        """Formats like Lambda unless user code sets another formatter; every record also gets `aws_request_id`."""

        def emit(self, record: "LogRecord") -> None:
            try:
                seq, record.aws_request_id = scope.now()
                text = self.format(record).rstrip("\n").encode("utf-8", "backslashreplace")
                if answers.forgotten:
                    sys.stderr.write(text.decode() + "\n")
                else:
                    send_text(answers, text, seq, flags=LOGGING, level=max(0, min(int(record.levelno), LEVEL_MAX)))
            except Exception:
                self.handleError(record)

    formatter = logging.Formatter(FORMAT, TIME_FORMAT)
    formatter.converter = time.gmtime
    handler = DayflyHandler()
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
