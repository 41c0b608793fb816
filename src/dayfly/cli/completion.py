"""--install-completion and --show-completion: click writes the script, this module knows where each shell reads it."""

import os
from pathlib import Path

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure

SHELLS = ("bash", "zsh", "fish")


def options(program: str) -> list[click.Parameter]:
    """Both options of the root."""

    def show(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
        if wanted:
            output.result(script(context.find_root().command, program, shell()))
            context.exit()

    def install(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
        if wanted:
            output.result(f"completion is in {install_for(context.find_root().command, program, shell())}; open a new shell to use it")
            context.exit()

    def option(name: str, callback: object, text: str) -> click.Option:
        return click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=callback, help=text)

    return [
        option("--install-completion", install, "Install completion for this shell."),
        option("--show-completion", show, "Print the completion script."),
    ]


def shell() -> str:
    """The user's shell, one of SHELLS; raises Failure for another."""
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise Failure(f"The shell {name or 'without a name'!r} is not known (SHELL).", f"Set SHELL to one of {', '.join(SHELLS)}.")
    return name


def script(app: click.Command, program: str, name: str) -> str:
    """The script that a shell must read."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(name)
    assert kind is not None
    return kind(app, {}, program, f"_{program.upper()}_COMPLETE").source()


def install_for(app: click.Command, program: str, name: str) -> Path:
    """Write the script into a file of its own and let the shell's start-up file read it once; returns the script's path."""
    home = Path.home()
    if name == "fish":
        path = home / ".config/fish/completions" / f"{program}.fish"
    else:
        path = home / ".local/share" / program / f"completion.{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(app, program, name), encoding="utf-8")
    if name != "fish":
        start = home / (".bashrc" if name == "bash" else ".zshrc")
        line = f"source {path}"
        present = start.read_text(encoding="utf-8") if start.exists() else ""
        if line not in present.splitlines():
            with start.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")
    return path
