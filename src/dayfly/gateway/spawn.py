"""What an instance is born with: its descriptors, its BOOT frame, its secrets, and the message that asks for it.

Called by gateway/fleet.py for each start it carries out, and by gateway/templates.py.
"""

import os
import socket
from contextlib import ExitStack
from typing import Literal

import msgspec
import structlog

from dayfly.core.model.egress import way_of
from dayfly.core.ports import Provider
from dayfly.core.wire.node import Start, pack_secrets
from dayfly.gateway.channel import Channel
from dayfly.gateway.entry import Entry
from dayfly.gateway.version_socket import sealed_memfd

log = structlog.get_logger()

WARN_SECONDS = 10.0

Role = Literal["instance", "template", "packages"]


def spawn(
    provider: Provider, entry: Entry, channel: Channel, *, role: Role = "instance", parent: str = "", imports: list[str] | None = None,
    apart: bool = False,
) -> str:  # fmt: skip
    """Ask `provider` for an instance (or a template; one of packages has `imports`) behind `channel`, if possible from the template
    `parent`, if `apart` where no calls are answered. Empty, or the code why it cannot be asked now (the channel is then closed)."""
    version = entry.version
    channel.head = f"x-dayfly-version: {version.number}\r\nx-dayfly-instance: {channel.id}\r\n".encode()
    channel.parent = parent
    more = {} if imports is None else {"imports": imports}
    try:
        theirs, page, output = channel.open(msgspec.json.encode({**entry.boot, **more, "instance": channel.id}))
    except OSError as error:
        if channel.started_at - entry.warned_at > WARN_SECONDS:  # it is tried again at every tick
            entry.warned_at = channel.started_at
            log.warning("no_room_for_instance", function=entry.version.function, detail=error.strerror)
        return "overloaded"
    with ExitStack() as undo:
        undo.enter_context(theirs)
        undo.callback(os.close, page)
        undo.callback(os.close, output)
        receiver = entry.socket.receiver if role == "instance" else _nobodys(undo)
        descriptors = [receiver.fileno(), theirs.fileno(), page, output]
        if entry.secrets:
            secrets = sealed_memfd("dayfly-secrets", [pack_secrets(entry.secrets)])
            undo.callback(os.close, secrets)
            descriptors.append(secrets)
        accepted = provider.start(_message(entry, channel.id, role, parent, apart), descriptors)
    if not accepted:
        channel.close()
        return "start_failed"
    channel.listen()
    return ""


def _message(entry: Entry, instance: str, role: Role, parent: str, apart: bool) -> Start:
    version, config = entry.version, entry.version.config
    way, rules = way_of(config.egress)
    return Start(
        instance=instance,
        tenant=version.namespace,
        runtime=config.runtime,
        code=version.code_digest if role != "packages" else "",
        layer=version.layer_digest,
        memory_mb=config.memory_mb,
        tmp_mb=config.tmp_mb,
        egress=way,
        egress_rules=rules,
        cpu_millicores=round(config.cpu * 1000),
        has_secrets=bool(entry.secrets),
        role=role,
        parent=parent,
        apart=apart,
    )


def _nobodys(undo: ExitStack) -> socket.socket:
    """A socket of calls on which none will come: a template serves none, and may be made when its version has just let go of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.enter_context(ours)
    undo.enter_context(theirs)
    return theirs
