"""What a template's child may not do in its own namespaces, done for it from outside: a user, a /tmp, a /proc, its network.

The child is as hostile as the code whose copy it is, until it has hardened itself: what belongs to it is what the kernel says does. Called
by node/templates.py, on one thread.
"""

import array
import os
import socket
from collections.abc import Callable

from dayfly.core.decide.isolate import TMP_INODES_PER_MB
from dayfly.node.machine import Machine
from dayfly.node.offshoot import Offshoot
from dayfly.node.prepared import Watch
from dayfly.sandbox import mounts
from dayfly.sandbox import syscalls as sys_
from dayfly.sandbox.door import Door, Spaces, attaching

FOREIGN_PROC = True  # whether to try; False is for tests of what older kernels need


class Furnisher:
    """`fail` hears of a child that cannot be furnished once `begin` has returned."""

    def __init__(self, machine: Machine, door: Door, watch: Watch, fail: Callable[[Offshoot, str], None]) -> None:
        self._machine = machine
        self._door = door
        self._watch = watch
        self._fail = fail
        self._mounts_foreign_proc = FOREIGN_PROC  # until the kernel says no

    def begin(self, child: Offshoot) -> None:
        """What can be done at once, and where the kernel can, all of it. Raises OSError."""
        child.spaces = Spaces(child.pid)
        if self._machine.root and any(sys_.owner_of_namespace(fd) != child.template.uid for fd in child.spaces.descriptors):
            raise PermissionError("these are not namespaces of its own")  # or its pid is somebody else's by now
        tree = self._proc(child.pid)
        if tree < 0:
            self._ask_for_proc(child)
        try:
            if child.outfit.uid:
                for name in ("uid_map", "gid_map"):
                    with open(f"/proc/{child.pid}/{name}", "w") as file:
                        file.write(f"{child.outfit.uid} {child.outfit.uid} 1")
            self._connect(child)
            if tree >= 0:
                self._finish(child, tree)
        finally:
            if tree >= 0:
                os.close(tree)

    def _connect(self, child: Offshoot) -> None:
        """Its network, as one from the pool would be."""
        start, networks = child.template.start, self._machine.networks
        egress = start.egress if self._machine.has("egress_internet") else "none"
        netns = os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            child.outfit.network_key = networks.furnish(netns, egress)
            networks.admit(child.outfit.network_key, egress, start.egress_rules)
        finally:
            os.close(netns)

    def _proc(self, pid: int) -> int:
        """A detached mount of its pid namespace's /proc, made from here; -1 where the kernel cannot (before Linux 6.18)."""
        if self._mounts_foreign_proc:
            try:
                return sys_.new_mount("proc", {"pidns": f"/proc/{pid}/ns/pid", **mounts.PROC_SETTINGS}, mounts.PROC_ATTRIBUTES)
            except OSError:
                self._mounts_foreign_proc = False
        return -1

    def _ask_for_proc(self, child: Offshoot) -> None:
        """Only a process in that namespace can mount it: a helper of the zygote's goes in."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child.proc = ours
        with theirs:
            child.template.zygote.mount_proc(os.open(f"/proc/{child.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC), theirs.detach())
        ours.setblocking(False)
        self._watch(ours.fileno(), lambda _: self._proc_arrives(child))

    def _proc_arrives(self, child: Offshoot) -> None:
        assert child.proc is not None
        self._watch(child.proc.fileno(), None)
        descriptors: list[int] = []
        try:
            said, descriptors, _, _ = socket.recv_fds(child.proc, 512, 1)
            if len(descriptors) != 1:
                raise OSError(f"no /proc of its own: {said.decode(errors='replace')}")
            self._finish(child, descriptors[0])
        except OSError as error:
            self._fail(child, str(error))
        finally:
            child.proc.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def _finish(self, child: Offshoot, proc: int) -> None:
        """The last things it needs. After this it hardens itself and says that it stands."""
        assert child.spaces is not None
        size = child.template.start.tmp_mb
        options = f"mode=1777,size={size << 20},nr_inodes={size * TMP_INODES_PER_MB}".encode()
        tmp = sys_.prepared("mount", b"tmpfs", b"/tmp", b"tmpfs", mounts.TMPFS_FLAGS, options)
        self._door.visit(child.spaces, [tmp, attaching(proc, "/proc")])
        names, tasks = child.outfit.hand_over()
        try:
            if "cgroup" in names:
                child.outfit.group.enter(child.pid)  # type: ignore[union-attr]
            rights = array.array("i", tasks if "cgroup" not in names else [])
            word = b"%d" % child.outfit.uid if child.owner is not None else b"%d ahead" % child.outfit.uid
            child.seat.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [])
        finally:
            for descriptor in tasks:
                os.close(descriptor)
