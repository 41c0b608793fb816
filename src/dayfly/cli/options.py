"""How a command gets its options: the global ones on every command, and one flag per field of a settings struct.

`@command(app)` turns `def ls(session, …)` into a Typer command that also takes --json, --url, --token and --namespace, before or
after the command's name. `@command(app, fields="platform")` adds a flag for each setting; those given arrive as
`given: dict[str, str]`, unconverted: cli/settings.py and the platform check them, so that every source is checked alike.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dayfly.cli.client import Client
    from dayfly.cli.profile import Profile

GLOBALS: dict[str, Any] = {
    "json_output": Annotated[bool, typer.Option("--json", help="Print JSON to standard output.", rich_help_panel="Global")],
    "url": Annotated[str, typer.Option("--url", metavar="URL", help="Platform's address (DAYFLY_URL).", rich_help_panel="Global")],
    "token": Annotated[str, typer.Option("--token", metavar="TOKEN", help="Access token (DAYFLY_TOKEN).", rich_help_panel="Global")],
    "namespace": Annotated[str, typer.Option("--namespace", "-n", metavar="NS", help="Namespace (DAYFLY_NAMESPACE).", rich_help_panel="Global")],
}
GLOBAL_DEFAULTS: dict[str, Any] = {"json_output": False, "url": "", "token": "", "namespace": ""}


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

    @property
    def namespace_is_default(self) -> bool:
        """Nobody named a namespace: a dayfly.toml may."""
        import os

        return not (self._said[2] or os.environ.get("DAYFLY_NAMESPACE"))

    def query(self, **more: Any) -> dict[str, Any]:
        """Query parameters with the namespace in front."""
        return {"namespace": self.profile.namespace, **more}


def command(app: typer.Typer, name: str = "", *, fields: str = "", skip: tuple[str, ...] = (), **extra: Any) -> Any:
    """Register a function `f(session, [given,] …)` as a command. `fields`: "platform" or "function", whose
    settings become flags, but for `skip` and the function's own parameters."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[2 if fields else 1 :]
        flags = _field_parameters(fields, {*skip, *(p.name for p in own)}) if fields else []
        flag_names = {p.name for p in flags}

        def run(context: typer.Context, **values: Any) -> None:
            said = {key: values.pop(key) or (context.obj or {}).get(key, default) for key, default in GLOBAL_DEFAULTS.items()}
            arguments: list[Any] = [Session(**said)]
            if fields:
                flagged = {key: values.pop(key) for key in flag_names}
                arguments.append({key: value for key, value in flagged.items() if value is not None})
            function(*arguments, **values)

        parameters = [_parameter("context", typer.Context), *own, *flags]
        parameters += [_parameter(key, note, GLOBAL_DEFAULTS[key]) for key, note in GLOBALS.items()]
        ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(name or function.__name__, **extra)(run)
        return function

    return register


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _field_parameters(kind: str, skip: set[str]) -> list[inspect.Parameter]:
    """One text option per setting, with its description and default in the help."""
    from dayfly.cli.reference import FunctionConfig, Settings, fields_of

    return [
        _parameter(
            field.name,
            Annotated[
                str | None,
                typer.Option(
                    "--" + field.name.replace("_", "-"),
                    metavar=field.kind.upper(),
                    help=field.about + (f" [default: {field.default}]" if field.default != "" else ""),
                    show_default=False,
                    rich_help_panel="Settings",
                ),
            ],
            None,
        )
        for field in fields_of(Settings if kind == "platform" else FunctionConfig)
        if field.name not in skip
    ]
