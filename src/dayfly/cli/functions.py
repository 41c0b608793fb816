"""Commands about functions: new, deploy, ls, describe, rm, rollback, alias. Each says what the user typed and prints what came back.

Nothing is decided here that the platform should decide. Heavy imports stand inside the commands: `--help` must feel instant.
"""

import sys
from pathlib import Path
from typing import Any

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.options import PATH, Session, command

alias_app = click.Group("alias", help="Names that point at versions.")


def register(app: click.Group) -> None:
    """Add the commands to the tree, in the order in which `--help` shows them."""
    command(app)(new)
    command(app, fields="function")(deploy)
    command(app)(ls)
    command(app)(describe)
    command(app)(rm)
    command(app)(rollback)
    app.add_command(alias_app)
    command(alias_app, "set")(alias_set)
    command(alias_app, "rm")(alias_rm)
    command(alias_app, "ls")(alias_ls)


@click.argument("name", metavar="NAME")
def new(session: Session, name: str) -> None:
    """Make a folder with a function to start from."""
    from dayfly.cli.scaffold import scaffold

    folder, function, files = scaffold(Path(name))
    if session.json:
        output.document({"folder": str(folder), "name": function, "files": files})
        return
    output.result(f"made {folder} with {', '.join(files)}")
    output.message(f"next: dayfly deploy {folder}   then: dayfly invoke {function}")


@click.argument("path", metavar="PATH", type=PATH)
@click.option("--name", "name", default="", help="Function's name; default: dayfly.toml's, or that of the file or folder.")
@click.option("--env", "-e", "env", multiple=True, metavar="KEY=VALUE", help="Environment variable; repeat for more.")
@click.option("--secret", "secret", multiple=True, metavar="NAME", help="Secret to mount; repeat for more.")
def deploy(session: Session, given: dict[str, str], path: Path, name: str, env: tuple[str, ...], secret: tuple[str, ...]) -> None:
    """Deploy a function: upload, build dependencies, prove one instance, then move its `live` alias."""
    from dayfly.cli.bundle import pack
    from dayfly.cli.deploying import deploy as send
    from dayfly.cli.deploying import overrides
    from dayfly.cli.progress import Progress

    config = overrides(given, env, secret)
    client = session.client
    bundle = pack(path)
    namespace = session.namespace_for(bundle.namespace)
    with Progress(quiet=session.json) as progress:
        done = send(client, name or bundle.name, bundle, config, progress.event, namespace=namespace)
    bundle.close()
    if session.json:
        output.document(done.as_json(session.profile.url))
    else:
        print_deployed(done.as_json(session.profile.url))


def print_deployed(done: dict[str, Any]) -> None:
    """URL, version, timings; what this machine cannot wall off, loudly."""
    if done.get("unchanged"):
        output.result(f"{done['name']} is unchanged: version {done.get('version')} keeps serving")
    else:
        output.result(f"{done['name']} version {done.get('version')} is live")
    output.result(f"  url   {done['url']}")
    for route in done.get("routes") or []:
        output.result(f"  route {route}")
    stages = done.get("seconds") if isinstance(done.get("seconds"), dict) else {}
    spent = "  ".join(
        f"{stage} {output.milliseconds(float(s) * 1000)}" for stage, s in (stages or {}).items() if isinstance(s, int | float)
    )
    total = output.milliseconds(done["total_seconds"] * 1000)
    output.result(
        f"  time  {total}"
        + (f"  ({spent})" if spent else "")
        + (f"  init {output.milliseconds(done['init_ms'])}" if done.get("init_ms") else "")
    )
    for text in done.get("warnings") or []:
        output.message(f"WARNING: {text}", output.YELLOW)
    for wall in done.get("missing") or []:
        output.message(
            f"WARNING: this machine cannot give the function the wall {wall!r}: `dayfly doctor` says what that costs.", output.YELLOW
        )


def ls(session: Session) -> None:
    """List the functions of a namespace."""
    answer = session.client.json("GET", "/api/v1/functions", query=session.query())
    if session.json:
        output.document(answer)
        return
    rows: list[tuple[str, ...]] = [
        (f["name"], weights_text(f["live"]), f["runtime"], f"{f['memory_mb']} MB", f["auth"], output.moment(f["updated_at"]), _routes(f))
        for f in answer["functions"]
    ]
    columns: tuple[str, ...] = ("name", ">version", "runtime", ">memory", "auth", "deployed", "routes")
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    output.show_table(columns, rows, empty="no functions yet: `dayfly new hello && dayfly deploy hello`")


def _routes(function: dict[str, Any]) -> str:
    return "; ".join(function.get("routes") or ())


def weights_text(weights: dict[str, float]) -> str:
    """{"3": 0.9, "4": 0.1} → '3 (90 %), 4 (10 %)'; one version without its weight."""
    if len(weights) == 1:
        return next(iter(weights))
    return ", ".join(f"{version} ({weight * 100:g} %)" for version, weight in weights.items()) or "-"


@click.argument("name", metavar="NAME")
def describe(session: Session, name: str) -> None:
    """Show everything about a function: settings, versions, aliases, statistics, usage."""
    from dayfly.cli.client import function_path

    answer = session.client.json("GET", function_path(name), query=session.query())
    if session.json:
        output.document(answer)
        return
    output.result(f"{answer['name']}  {session.profile.url}{answer['url']}")
    for route in answer.get("routes", ()):
        output.result(f"  route {route}")
    for group in ("config", "statistics", "usage_today"):
        output.result(f"\n{group.replace('_', ' ')}")
        for key, value in answer[group].items():
            output.result(f"  {key:<22} {_short(value)}")
    if answer.get("limits"):
        from dayfly.cli.limits import rows

        output.result("\nlimits")
        for scope, limit, value, used in rows(answer["limits"]):
            output.result(f"  {limit:<22} {value} ({scope}{'' if used == '-' else f', {used} used today'})")
    output.result("\nisolation")
    output.result(f"  {'walls':<22} {', '.join(answer.get('walls', ()))}")
    for wall in answer.get("missing", ()):
        output.result(f"  {'missing':<22} {wall}")
    output.result("\naliases")
    for alias, weights in answer["aliases"].items():
        output.result(f"  {alias:<22} {weights_text(weights)}")
    output.result("\nversions")
    for version in answer["versions"]:
        output.result(f"  {version['number']:<6} {output.moment(version['created_at'])}  {version['code_digest'][:12]}")


def _short(value: Any) -> str:
    import json

    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.argument("name", metavar="NAME")
@click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask.")
def rm(session: Session, name: str, yes: bool) -> None:
    """Remove a function with all its versions (logs and usage stay until their retention ends)."""
    from dayfly.cli.client import function_path

    confirm(f"Remove the function {name} with all its versions?", yes or session.json)
    session.client.json("DELETE", function_path(name), query=session.query())
    done(session, {"removed": name}, f"{name} is removed")


@click.argument("name", metavar="NAME")
@click.option("--to", "to", type=click.IntRange(min=1), metavar="N", help="Version; default: the one before.")
def rollback(session: Session, name: str, to: int | None) -> None:
    """Point `live` at an earlier version again."""
    from dayfly.cli.client import function_path

    answer = session.client.json("POST", function_path(name, "rollback"), query=session.query(), body={"to": to} if to else {})
    done(session, answer, f"{name}: live is version {weights_text(answer['weights'])} again")


@click.argument("name", metavar="NAME")
@click.argument("alias", metavar="ALIAS")
@click.argument("versions", metavar="VERSION[=WEIGHT]…", nargs=-1, required=True)
def alias_set(session: Session, name: str, alias: str, versions: tuple[str, ...]) -> None:
    """Point an alias at a version, or at two with weights."""
    from dayfly.cli.client import function_path

    weights = dict(_weighted(text) for text in versions)
    answer = session.client.json("PUT", function_path(name, "aliases", alias), query=session.query(), body={"weights": weights})
    done(session, answer, f"{name}: {alias} is {weights_text(weights)}")


def _weighted(text: str) -> tuple[str, float]:
    version, sign, weight = text.partition("=")
    try:
        return str(int(version)), float(weight) if sign else 1.0
    except ValueError:
        raise Failure(f"{text!r} is no VERSION or VERSION=WEIGHT.", "Write for example `3`, or `3=0.9 4=0.1`.") from None


@click.argument("name", metavar="NAME")
@click.argument("alias", metavar="ALIAS")
def alias_rm(session: Session, name: str, alias: str) -> None:
    """Remove an alias (`live` stays)."""
    from dayfly.cli.client import function_path

    session.client.json("DELETE", function_path(name, "aliases", alias), query=session.query())
    done(session, {"removed": alias, "function": name}, f"{name}: {alias} is removed")


@click.argument("name", metavar="NAME")
def alias_ls(session: Session, name: str) -> None:
    """List a function's aliases."""
    from dayfly.cli.client import function_path

    aliases = session.client.json("GET", function_path(name), query=session.query())["aliases"]
    if session.json:
        output.document({"aliases": aliases})
        return
    output.show_table(("alias", "version"), [(alias, weights_text(weights)) for alias, weights in aliases.items()], empty="no aliases")


def done(session: Session, answer: Any, sentence: str) -> None:
    """The end of a command that changed something."""
    if session.json:
        output.document(answer)
    else:
        output.result(sentence)


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; without one, go on only when told so."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure("This needs a yes, and nobody can be asked here.", "Add --yes.")
    output.message(f"{question} [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure("Nothing was changed.", "Answer y to go on.")
