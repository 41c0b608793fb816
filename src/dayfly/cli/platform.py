"""Commands about the platform on this machine: up, down, restart, status, doctor."""

import time
from pathlib import Path
from typing import Any

import click

from dayfly.cli import output
from dayfly.cli.failure import EXIT_PLATFORM, EXIT_UNREACHABLE, Failure
from dayfly.cli.options import Session, command

DOWN_EXTRA_SECONDS = 15.0  # what down waits beyond the gateway's drain timeout


def register(app: click.Group) -> None:
    """Add the commands."""
    command(app, fields="platform")(up)
    command(app)(down)
    command(app)(restart)
    command(app)(status)
    command(app)(doctor)


@click.option("--detach", "-d", "detach", is_flag=True, help="Return when the platform is ready; it goes on in the background.")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def up(session: Session, given: dict[str, str], detach: bool, config: str) -> None:
    """Start the platform here. Ctrl-C or `dayfly down` ends it."""
    from dayfly.cli.up import up as start

    start(_settings(given, config), detach=detach, as_json=session.json)


def _settings(given: dict[str, str], config: str) -> Any:
    return _resolved(given, config).settings


def _resolved(given: dict[str, str], config: str, *, warn: bool = True) -> Any:
    import os

    from dayfly.cli.settings import resolve

    resolved = resolve(given, os.environ, config=config)
    for name in resolved.unknown if warn else ():
        output.warn(f"{name} is no setting; docs/configuration.md lists them.")
    return resolved


def here(session: Session, data: str, run: str, config: str) -> tuple[Any, Any]:
    """(settings, layout) of the platform that these words mean: when nothing names a directory and none runs at the default one,
    the platform that the other commands talk to, which is the one started last."""
    from dayfly.cli import running
    from dayfly.cli.directories import locate

    resolved = _resolved({key: value for key, value in (("data", data), ("run", run)) if value}, config)
    settings = resolved.settings
    layout = locate(settings)
    if resolved.sources.keys() & {"data", "run"} or running.holder(layout):
        return settings, layout
    try:
        known = session.profile
    except Failure:  # no address, or damaged credentials: those are not needed here
        return settings, layout
    if known.data and known.data != layout.data:
        if not session.json:
            output.message(f"nothing runs at {layout.data}; this is {known.url}, started last, at {known.data}")
        settings = _resolved({"data": known.data} | ({"run": known.run} if known.run else {}), config, warn=False).settings
    return settings, locate(settings)


@click.option("--data", "data", default="", metavar="DIR", help="Data directory, as given to `dayfly up` (DAYFLY_DATA).")
@click.option("--run", "run", default="", metavar="DIR", help="Run directory, as given to `dayfly up` (DAYFLY_RUN).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def down(session: Session, data: str, run: str, config: str) -> None:
    """End the platform and wait until it is gone; clean up after one that was killed."""
    from dayfly.cli import running

    settings, layout = here(session, data, run, config)
    pid = running.holder(layout)
    in_order = True
    if pid > 0:
        in_order = running.stop(layout, pid, settings.drain_timeout_seconds + DOWN_EXTRA_SECONDS)
    if not running.wait_unlocked(layout, 5.0):
        raise Failure(f"Something still holds {layout.lock_file}.", "Try again in a moment.", fault="platform", exit_code=EXIT_PLATFORM)
    leftovers = running.clear(layout) if Path(layout.run).is_dir() else []
    if session.json:
        output.document({"was_running": pid > 0, "in_order": in_order, "leftovers": leftovers, "data": layout.data})
    elif pid > 0:
        output.result("ended" if in_order else "ended by force: it did not stop in time")
    else:
        output.result(f"not running at {layout.data}" + (f"; cleaned up after {', '.join(leftovers)}" if leftovers else ""))


@click.option("--rolling", "rolling", is_flag=True, help="Replace one process after the other while both serve: callers notice nothing.")
@click.option("--data", "data", default="", metavar="DIR", help="Data directory, as given to `dayfly up` (DAYFLY_DATA).")
@click.option("--run", "run", default="", metavar="DIR", help="Run directory, as given to `dayfly up` (DAYFLY_RUN).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def restart(session: Session, rolling: bool, data: str, run: str, config: str) -> None:
    """Start every process of the platform again, from what is installed now. Its port stays open, calls under way are finished."""
    from dayfly.cli import restarting

    _, layout = here(session, data, run, config)
    began = time.monotonic()
    done = restarting.restart(layout, rolling=rolling, tell=(lambda _: None) if session.json else output.message)
    seconds = round(time.monotonic() - began, 2)
    if session.json:
        output.document({"kind": done["kind"], "seconds": seconds, "data": layout.data})
    else:
        output.result(f"restarted in {seconds} s")


@click.option("--data", "data", default="", metavar="DIR", help="Data directory, as given to `dayfly up` (DAYFLY_DATA).")
@click.option("--run", "run", default="", metavar="DIR", help="Run directory, as given to `dayfly up` (DAYFLY_RUN).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def status(session: Session, data: str, run: str, config: str) -> None:
    """Show whether the platform runs here: roles, pids, uptime, memory, address. Exit code 3 when it does not."""
    from dayfly.cli import directories, running
    from dayfly.core.wire import caddy

    _, layout = here(session, data, run, config)
    pid = running.holder(layout)
    if not pid:
        if session.json:
            output.document({"running": False, "data": layout.data})
        else:
            output.result(f"not running at {layout.data}")
        raise click.exceptions.Exit(EXIT_UNREACHABLE)
    facts = running.state(layout)
    host = facts.get("host", "")
    roles = (
        {"supervisor": {"pid": pid, "ready": True, "restarts": 0, "started_at": None}} | facts.get("roles", {}) | facts.get("leaving", {})
    )
    for role in roles.values():
        role["memory_bytes"] = running.memory_bytes(role["pid"]) if role.get("pid", 0) > 0 else 0
        role["uptime_seconds"] = round(time.time() - role["started_at"], 1) if role.get("started_at") and role.get("pid") else None
        role.pop("start_ticks", None)
    url = f"http://{f'[{host}]' if ':' in host else host}:{facts.get('port')}" if host else None
    https = caddy.urls_of(facts.get("domain", ""), facts.get("front_https_port", 443))
    log = facts.get("log_file") or None
    if session.json:
        where = {"url": url, "https": https, "data": layout.data, "run": layout.run, "log": log}
        output.document({"running": True, "pid": pid, **where, "roles": roles})
        return
    output.result(
        f"running at {' '.join([str(url), *https])}  data {layout.data}" + (f"  log {directories.log_file(layout)}" if log else "")
    )
    rows = [
        (
            name,
            role.get("pid") or "down",
            "ready" if role.get("ready") else "starting",
            output.duration(role["uptime_seconds"]),
            output.size(role["memory_bytes"]),
            role.get("restarts", 0),
        )
        for name, role in roles.items()
    ]
    output.show_table(("role", ">pid", "state", ">uptime", ">memory", ">restarts"), rows, empty="")


@click.option("--store", "store", is_flag=True, help="Look at what is stored instead: damage, schema, sizes, ages, how long a write takes.")
@click.option("--data", "data", default="", metavar="DIR", help="Data directory, as given to `dayfly up` (DAYFLY_DATA).")
@click.option("--run", "run", default="", metavar="DIR", help="Run directory, as given to `dayfly up` (DAYFLY_RUN).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def doctor(session: Session, store: bool, data: str, run: str, config: str) -> None:
    """Look at this machine: isolation, port, disk, limits, versions. Exit code 5 when something Dayfly needs is missing."""
    from dayfly.cli import machine, running, storage

    settings, layout = here(session, data, run, config)
    if store:
        _report(session, *storage.checks(layout))
        return
    ours = False
    port = settings.port
    if running.holder(layout) > 0:
        ours, port = True, running.state(layout).get("port", settings.port)
    checks = [
        *machine.isolation(),
        *machine.port(settings.host, port, ours=ours),
        *machine.disk(layout.data),
        *machine.limits(),
        *machine.processors(),
        *machine.versions(),
    ]
    _report(session, checks, None)


def _report(session: Session, checks: list[Any], facts: dict[str, Any] | None) -> None:
    """Lines or a document; exit code 5 when something is missing."""
    bad = [check for check in checks if check.state == "missing"]
    if session.json:
        more = {} if facts is None else {"store": facts}
        output.document({"ok": not bad, "checks": [check.as_json() for check in checks]} | more)
    else:
        _show_checks(checks)
    if bad:
        raise click.exceptions.Exit(EXIT_PLATFORM)


def _show_checks(checks: list[Any]) -> None:
    import sys

    colours = {"ok": output.GREEN, "warning": output.YELLOW, "missing": output.RED}
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            output.result(f"{group}")
        mark = output.colour(f"{check.state:<8}", colours[check.state], sys.stdout)
        sys.stdout.write(f"  {mark} {output.visible(f'{check.name:<22} {check.found}'.rstrip())}\n")
        if check.costs:
            output.result(f"             costs: {check.costs}")
        if check.remedy:
            output.result(f"             get it: {check.remedy}")
