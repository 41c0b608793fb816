"""The command tree and the one place where a failure becomes lines and an exit code.

Modules with commands import nothing heavy; each command imports what it needs when it runs. Called by the `dayfly` script and
`python -m dayfly`.
"""

import os
import sys
from collections.abc import Sequence

import click

from dayfly.cli import access, calling, calls, completion, functions, mapping, output, platform, schedules, simulating, storing, watching
from dayfly.cli.failure import EXIT_INTERRUPTED, EXIT_OK, EXIT_PLATFORM, EXIT_USAGE, Failure
from dayfly.cli.options import GLOBAL_NAMES, global_options

PROGRAM = "dayfly"


def _version(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from dayfly import __version__

        output.result(__version__)
        context.exit()


def _root(**values: object) -> None:
    """Global options may stand before or after the command's name."""
    click.get_current_context().obj = {key: values[key] for key in GLOBAL_NAMES}


class Root(click.Group):
    """The root: its commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


app = Root(
    PROGRAM,
    callback=_root,
    params=[
        *global_options(),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."),
        *completion.options(PROGRAM),
    ],
    help="Functions that start in milliseconds in a real sandbox. Start with `dayfly up -d`, then `dayfly deploy hello.py`.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
platform.register(app)
storing.register(app)
functions.register(app)
calling.register(app)
calls.register(app)
mapping.register(app)
access.register(app)
schedules.register(app)
watching.register(app)
simulating.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app.main(args=words, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except Failure as problem:
        return _failed(problem, as_json="--json" in words)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        output.message(help_wanted.format_message())
        return EXIT_USAGE
    except click.UsageError as error:
        context = error.ctx.command_path if error.ctx else PROGRAM
        return _failed(Failure(error.format_message(), f"`{context} --help` shows what can be said."), as_json="--json" in words)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `dayfly logs … | head`: nobody reads any more, and that is no error
        return EXIT_OK
    except Exception as error:
        return _defect(error, as_json="--json" in words)


def _failed(problem: Failure, *, as_json: bool) -> int:
    if as_json:
        output.document(problem.body())
    output.failure(problem)
    return problem.exit_code


def _defect(error: Exception, *, as_json: bool) -> int:
    import traceback

    trace = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {error}"
    hint = "This is a defect of Dayfly: report it with the lines above."
    return _failed(Failure(what, hint, fault="platform", exit_code=EXIT_PLATFORM, code="internal", extra=trace), as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
