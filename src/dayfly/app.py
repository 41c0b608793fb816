"""Introduces everyone: which roles a machine runs, in which order, and what each gets in its hands.

`python -I -m dayfly.app supervisor …` is the lean parent that `dayfly up` becomes; `python -I -m dayfly.app ROLE` is one child.
Nothing but wiring lives here, and nothing heavy is imported before it is known which process this is.
"""

import contextlib
import os
import sys

from dayfly import handover, supervisor
from dayfly.child import COMMONS
from dayfly.core.decide.gateways import gateways_of

MODULES = {
    "node": "dayfly.node.server",
    "egress": "dayfly.node.egress",
    "control": "dayfly.api.main",
    "gateway": "dayfly.gateway.main",
    "front": "dayfly.gateway.front",
}
PRIVILEGED = ("node",)  # keeps root; every other role becomes a user of its own before it touches a socket
LISTENERS = {"gateway": (supervisor.LISTENER,), "front": (supervisor.FRONT_TLS, supervisor.FRONT_PLAIN)}
DRAIN_EXTRA_SECONDS = 2.0  # what those who listen get beyond the drain timeout before they are killed
MANNERS = {"control": "alone", "egress": "first", "front": "foreign"}  # at a rolling restart (child.py Role)
STOP_SECONDS = {"node": 5.0, "egress": 2.0, "control": 6.0}


def module_exists(name: str) -> bool:
    """Whether a role's module is part of this installation (found by its file, so that nothing is imported)."""
    path = os.path.join(os.path.dirname(__file__), *name.split(".")[1:])  # noqa: PTH118, PTH120
    return os.path.exists(path + ".py")  # noqa: PTH110


def command(role: str) -> list[str]:
    """argv of a process of ours. -I: neither the working directory nor PYTHON* variables decide what is imported."""
    return [sys.executable, "-I", "-m", "dayfly.app", role]


def roles(drain_seconds: float, *, front: bool, gateways: int) -> list[supervisor.Role]:
    """The roles of one machine, in the order in which they start. The gateways are called gateway, gateway-1, gateway-2 …"""
    stops = STOP_SECONDS | dict.fromkeys(LISTENERS, drain_seconds + DRAIN_EXTRA_SECONDS)
    return [
        supervisor.Role(
            f"{name}-{slot}" if slot else name,
            command(f"{name}-{slot}" if slot else name),
            stop_seconds=stops[name],
            listeners=(*LISTENERS.get(name, ()), *((COMMONS,) if name == "gateway" and gateways > 1 else ())),
            manners=MANNERS.get(name, ""),
        )
        for name, module in MODULES.items()
        if module_exists(module) and (front or name != "front")
        for slot in range(gateways if name == "gateway" else 1)
    ]


def read_settings(fd: int) -> bytes:
    """The settings' JSON. All children share the memfd and its position, so it is read by offset."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def run_supervisor(what: str, more: str = "") -> int:
    """The parent; its arguments are those of handover.py `Held.given`."""
    import json
    import resource

    held = handover.Held.given(what, more)
    if what == handover.CHECK:
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for all roles: the usual soft limit is 1024, of which an instance takes two
    settings = json.loads(read_settings(held.settings_fd))
    _call_process("dayfly")
    gateways = gateways_of(settings.get("gateways", 1), len(os.sched_getaffinity(0)))
    if gateways > 1 and COMMONS not in held.listeners:
        held.listeners[COMMONS] = os.memfd_create("dayfly-commons")
    facts = {key: settings[key] for key in ("host", "port", "data", "run", "isolation", "log_level", "domain", "front_https_port")}
    return supervisor.Supervisor(
        roles(settings["drain_timeout_seconds"], front=supervisor.FRONT_TLS in held.listeners, gateways=gateways),
        held,
        state_file=f"{settings['run']}/{supervisor.STATE_FILE}",
        facts=facts | {"log_file": held.log_file},
        command=tuple(command("supervisor")),
    ).run()


def run_role(name: str) -> int:
    """One child: import, wait for the go, give up privileges, run. Why it could not start goes to the supervisor's pipe."""
    os.set_inheritable(supervisor.LIFELINE, False)
    os.set_inheritable(supervisor.READY, False)
    try:
        return _run_role(name)
    except Exception as error:
        _tell(f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace"))
        import traceback

        traceback.print_exc()
        return 1


def _run_role(given: str) -> int:
    import importlib
    from collections.abc import Callable
    from typing import Any

    import msgspec

    from dayfly.core.model.layout import Layout
    from dayfly.core.model.settings import Settings

    name, _, slot = given.partition("-")
    settings = msgspec.json.decode(read_settings(supervisor.SETTINGS), type=Settings)
    os.close(supervisor.SETTINGS)
    layout = Layout(data=settings.data, run=settings.run)
    run: Callable[..., None] = importlib.import_module(MODULES[name]).run
    _call_process(f"dayfly-{given}")
    extra: dict[str, Any] = {}
    if name == "gateway":
        import socket

        os.set_inheritable(supervisor.LISTENER, False)
        extra["listener"] = socket.socket(fileno=supervisor.LISTENER)
        extra["slot"] = int(slot or 0)
    elif name == "front":
        extra["listeners"] = LISTENERS[name]
    if name != "node":  # every instance is a fork of the node: what it does not import, nobody carries
        from dayfly import telemetry

        telemetry.configure(given, settings.log_level)
    unprivileged = os.geteuid() == 0 and name not in PRIVILEGED
    supervisor_pid = os.getppid()
    if unprivileged or name == "front":
        from dayfly.sandbox import privileges
    if unprivileged:
        user = privileges.role_users(layout.data, settings.user)[name]
    if name in ("gateway", "node", "egress"):
        from dayfly.sandbox import launch

        launch.take_short_turns()  # every call passes here: it should not wait behind what computes
        if name == "egress":  # it works for functions, as much as they make it work
            launch.stand_behind()
    os.write(supervisor.READY, supervisor.PREPARED_BYTE)
    if os.read(supervisor.LIFELINE, 1) != supervisor.GO_BYTE:
        return 0  # the supervisor left before it was our turn
    if unprivileged:
        folders = {"control": [layout.run, layout.data], "front": [layout.front]}
        privileges.drop(user, folders.get(name, [layout.run]))
    elif name == "front":  # it becomes a program that knows no lifeline
        privileges.end_with(supervisor_pid)
    run(settings, layout, lifeline=supervisor.LIFELINE, ready=_ready, **extra)
    return 0


def _call_process(name: str) -> None:
    """The name that ps and top show."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:  # noqa: PTH123
        comm.write(name)


_ready_pipe = [supervisor.READY]  # emptied when it was used: the number may belong to another file afterwards


def _ready() -> None:
    _tell(supervisor.READY_BYTE)


def _tell(message: bytes) -> None:
    """One message to the supervisor: READY_BYTE, or why this role cannot start. Later ones have nobody to go to."""
    if _ready_pipe:
        fd = _ready_pipe.pop()
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone; the lifeline says so too
            os.write(fd, message)
        os.close(fd)


if __name__ == "__main__":
    if sys.argv[1] == "supervisor":
        sys.exit(run_supervisor(*sys.argv[2:4]))
    sys.exit(run_role(sys.argv[1]))
