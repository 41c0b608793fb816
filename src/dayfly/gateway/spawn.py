"""What an instance is born with: its descriptors, its BOOT frame, its secrets, and the message that asks for it.

Called by gateway/fleet.py for each start it carries out.
"""

import os
from typing import Literal

import msgspec

from dayfly.core.model.egress import way_of
from dayfly.core.ports import Provider
from dayfly.core.wire.node import Start, pack_secrets
from dayfly.gateway.channel import Channel, sealed_memfd
from dayfly.gateway.entry import Entry


def spawn(
    provider: Provider, entry: Entry, channel: Channel, *, role: Literal["instance", "template"] = "instance", parent: str = ""
) -> bool:
    """Ask `provider` for an instance (or a template) behind `channel`, if possible from the template `parent`; False when it cannot be
    asked now (the channel is then closed)."""
    version, config = entry.version, entry.version.config
    channel.head = f"x-dayfly-version: {version.number}\r\nx-dayfly-instance: {channel.id}\r\n".encode()
    boot = msgspec.json.encode({**entry.boot, "instance": channel.id})
    theirs, page, output = channel.open(boot)
    secrets = -1
    try:
        descriptors = [entry.socket.receiver.fileno(), theirs.fileno(), page, output]
        if entry.secrets:
            secrets = sealed_memfd("dayfly-secrets", [pack_secrets(entry.secrets)])
            descriptors.append(secrets)
        way, rules = way_of(config.egress)
        start = Start(
            instance=channel.id,
            tenant=version.namespace,
            runtime=config.runtime,
            code=version.code_digest,
            layer=version.layer_digest,
            memory_mb=config.memory_mb,
            tmp_mb=config.tmp_mb,
            egress=way,
            egress_rules=rules,
            cpu_millicores=round(config.cpu * 1000),
            has_secrets=bool(entry.secrets),
            role=role,
            parent=parent,
        )
        accepted = provider.start(start, descriptors)
    finally:
        theirs.close()
        os.close(page)
        os.close(output)
        if secrets >= 0:
            os.close(secrets)
    if accepted:
        channel.listen()
    else:
        channel.close()
    return accepted
