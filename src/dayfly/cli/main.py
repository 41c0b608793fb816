"""The command tree and the one place where a failure becomes lines and an exit code.

Modules with commands import nothing heavy; each command imports what it needs when it runs. Called by the `dayfly` script and
`python -m dayfly`.
"""

import os
import sys
from typing import Annotated

import typer

from dayfly.cli import access, calling, functions, output, platform, watching
from dayfly.cli.failure import EXIT_INTERRUPTED, EXIT_OK, EXIT_PLATFORM, EXIT_USAGE, Failure
from dayfly.cli.options import GLOBALS

app = typer.Typer(
    name="dayfly",
    help="Functions that start in milliseconds in a real sandbox. Start with `dayfly up -d`, then `dayfly deploy hello.py`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        from dayfly import __version__

        output.result(__version__)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    json_output: GLOBALS["json_output"] = False,  # type: ignore[valid-type]
    url: GLOBALS["url"] = "",  # type: ignore[valid-type]
    token: GLOBALS["token"] = "",  # type: ignore[valid-type]
    namespace: GLOBALS["namespace"] = "",  # type: ignore[valid-type]
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Global options may stand before or after the command."""
    context.obj = {"json_output": json_output, "url": url, "token": token, "namespace": namespace}


platform.register(app)
functions.register(app)
calling.register(app)
access.register(app)
watching.register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=words, standalone_mode=False, prog_name="dayfly")
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except Failure as problem:
        if "--json" in words:
            output.document(problem.body())
        output.failure(problem)
        return problem.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `dayfly logs … | head`: nobody reads any more, and that is no error
        return EXIT_OK
    except Exception as error:
        return _other(error)


def _other(error: Exception) -> int:
    """Usage errors show themselves; anything else is a defect and says so."""
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "exit_code"):
        show()
        return EXIT_USAGE if error.exit_code else EXIT_OK
    if type(error).__name__ == "Abort":
        return EXIT_INTERRUPTED
    import traceback

    traceback.print_exc()
    output.failure(
        Failure(
            f"{type(error).__name__}: {error}", "This is a defect of Dayfly: report it with the lines above.",
            fault="platform", exit_code=EXIT_PLATFORM, code="internal",
        )
    )  # fmt: skip
    return EXIT_PLATFORM


if __name__ == "__main__":
    sys.exit(main())
