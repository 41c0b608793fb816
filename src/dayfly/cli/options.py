"""How a command gets its options: the global ones on every command, and one flag per setting of the platform or a function.

`command(group, name)` registers `def ls(session, …)` with its click parameters plus --json, --url, --token and --namespace, which may
stand before or after the command's name. `fields="platform"` or `"function"` adds a flag for each setting; those given arrive as
`given: dict[str, str]`, unconverted: cli/settings.py and the platform check them, so that every source is checked alike.

click and not Typer on top of it: Typer 0.29 builds a pydantic adapter for each parameter, 170 ms for every command (docs/cli.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dayfly.cli.client import Client
    from dayfly.cli.profile import Profile

PATH = click.Path(path_type=Path)
GLOBAL_NAMES = ("json_output", "url", "token", "namespace")


def global_options() -> list[click.Parameter]:
    """Fresh option objects for one command or the root."""
    return [
        click.Option(["--json", "json_output"], is_flag=True, help="Print JSON to standard output."),
        click.Option(["--url"], metavar="URL", help="Platform's address (DAYFLY_URL)."),
        click.Option(["--token"], metavar="TOKEN", help="Access token (DAYFLY_TOKEN)."),
        click.Option(["--namespace", "-n"], metavar="NS", help="Namespace (DAYFLY_NAMESPACE)."),
    ]


class Session:
    """What a command was told globally, and the client made from it when it is first needed."""

    def __init__(self, *, json_output: bool = False, url: str = "", token: str = "", namespace: str = "") -> None:
        self.json = json_output
        self._said = (url, token, namespace)
        self._client: Client | None = None

    @property
    def client(self) -> "Client":
        """Raises Failure when the address is none or the stored credentials are damaged."""
        if self._client is None:
            from dayfly.cli.client import Client
            from dayfly.cli.profile import Profile

            self._client = Client(Profile(*self._said))
        return self._client

    @property
    def profile(self) -> "Profile":
        return self.client.profile

    def namespace_for(self, suggested: str) -> str:
        """The namespace that was named, else the suggested one (a dayfly.toml's), else the default."""
        import os

        named = self._said[2] or os.environ.get("DAYFLY_NAMESPACE")
        return self.profile.namespace if named or not suggested else suggested

    def query(self, **more: Any) -> dict[str, Any]:
        """Query parameters with the namespace in front."""
        return {"namespace": self.profile.namespace, **more}


class Command(click.Command):
    """A command whose settings' flags are made only when it is really used: they cost an import that others need not pay."""

    def __init__(self, *args: Any, fields: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = len(self.params)
        self.fields = fields
        self.field_names: frozenset[str] = frozenset()
        self.params += global_options()

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """All parameters, settings included."""
        if self.fields and not self.field_names:
            taken = {param.name for param in self.params}
            flags = [flag for flag in _field_options(self.fields) if flag.name not in taken]
            self.field_names = frozenset(str(flag.name) for flag in flags)
            self.params[self.own : self.own] = flags
        return super().get_params(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """--help: what is the command's own first, then its settings, then what every command has."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Settings": [], "Global options": []}
        for param in self.get_params(context):
            record = param.get_help_record(context)
            if record is not None and isinstance(param, click.Option):
                title = "Settings" if param.name in self.field_names else "Global options" if param.name in GLOBAL_NAMES else "Options"
                groups[title].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(group: click.Group, name: str = "", *, fields: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(session, [given,] …)`, decorated with click's options and arguments, as a command of `group`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(reversed(getattr(function, "__click_params__", [])))

        def run(**values: Any) -> None:
            context = click.get_current_context()
            above = context.obj or {}
            said = {key: value for key in GLOBAL_NAMES if (value := values.pop(key) or above.get(key))}
            arguments: list[Any] = [Session(**said)]
            if fields:
                flags = {key: values.pop(key) for key in list(values) if key in context.command.field_names}  # type: ignore[attr-defined]
                arguments.append({key: value for key, value in flags.items() if value is not None})
            function(*arguments, **values)

        text = (function.__doc__ or "").strip()
        group.add_command(Command(name or function.__name__, callback=run, params=own, help=text, fields=fields))
        return function

    return register


def _field_options(kind: str) -> list[click.Option]:
    """One text option per setting, with its description and default in the help."""
    from dayfly.cli.reference import FILE_ONLY, fields_of
    from dayfly.core.model.function import FunctionConfig
    from dayfly.core.model.settings import Settings

    return [
        click.Option(
            ["--" + field.name.replace("_", "-")],
            metavar=field.kind.upper() if field.kind in ("number", "text") else field.kind,
            help=field.about.replace("`", "") + (f"  [default: {field.default}]" if field.default != "" else ""),
        )
        for field in fields_of(Settings if kind == "platform" else FunctionConfig)
        if field.name not in ("env", "secrets", *FILE_ONLY)  # -e and --secret say those
    ]
