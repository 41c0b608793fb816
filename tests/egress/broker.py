"""The broker as a process of its own: `python broker.py FOLDER RESOLV_CONF SETTINGS_JSON [uid]`. Run inside the network
namespace that plays this machine. Prints "ready"; ends with standard input.
"""

import os
import sys

import msgspec

from dayfly import telemetry
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.node import egress
from dayfly.sandbox import syscalls


def main(folder: str, resolv_conf: str, changes: str, uid: str = "") -> None:
    settings = msgspec.convert(msgspec.json.decode(changes) | {"data": folder, "run": folder}, Settings)
    telemetry.configure("egress", "warning", json=True)
    if uid:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(resolv_conf, "/etc/resolv.conf", "", syscalls.MS_BIND)
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    egress.run(settings, Layout(data=folder, run=folder), lifeline=0, ready=lambda: print("ready", flush=True))


main(*sys.argv[1:])
