"""A zygote: the warm parent that instances of one interpreter are forked from.

Run as a program by the *function's* interpreter (`python -I -S -B …/node/zygote.py CONTROL_FD`), so everything it imports is standard
library or listed in `load`. One thread, no user code, no secrets. It is pid 1 of its own pid namespace where there is one, so
that nothing it forked can outlive it. It obeys fixed messages of the node on one SOCK_SEQPACKET (the first is its configuration):

    node → zygote   its configuration (JSON), then, fields separated by NUL:
                    start INSTANCE UID CODE LAYER SCRATCH NAMES STEPS, with the descriptors that NAMES names; STEPS is JSON:
                    [[name, [parameter…]]…]
                    kill INSTANCE | proc, with a pid namespace and a socket that gets a /proc of it
    zygote → node   ready | forked ID PID (and credentials: the pid as the node sees it) | exited ID KIND CODE CPU_US PEAK_KB
                    | failed ID STEP TEXT   (always followed by exited)
"""

import _signal  # type: ignore[import-not-found]
import _socket
import array
import errno
import gc
import json
import os
import select
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dayfly.sandbox import launch, program

MESSAGE_BYTES_MAX = 16 * 1024
DESCRIPTORS_MAX = 16
OWN_DESCRIPTORS_FROM = 200  # received descriptors take the lowest free numbers: 3, 4, 5 … must be free
_RIGHTS_BYTES = _socket.CMSG_SPACE(4 * DESCRIPTORS_MAX)


def load(source: str) -> None:
    """Import what children run from the folder `source` (the one that holds dayfly/), and leave no way to import more from it."""
    sys.path.append(source)
    try:
        from dayfly.runtime import agent
        from dayfly.sandbox import heap, launch

        heap.fill_holes()
        theirs = (launch.Ticket.__init__, launch.Child.__init__, launch.Child.enter, launch.Kit.program, launch.Kit.stand)
        heap.pack_code(agent.prefault, (Zygote.receive, Zygote.start, Zygote.fork, Zygote.become, Zygote.reap, Zygote.send, *theirs))
        agent.rehearse_import()
    finally:
        sys.path.remove(source)
        sys.path_importer_cache.pop(source, None)
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "dayfly"]:
        if hasattr(module, "__path__"):
            module.__path__ = []


def high(descriptor: int) -> int:
    """Move a descriptor out of the way of those to be received."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, OWN_DESCRIPTORS_FROM)
    os.close(descriptor)
    return moved


def noticed(*_: object) -> None:
    """SIGCHLD's handler: that a byte arrives at the wake pipe is all that is wanted. A function of the module, so that a child
    that takes it out does not take it apart."""


class Zygote:
    """State of the loop: the control socket, the children, and what all children use."""

    def __init__(self, control: "_socket.socket", config: dict[str, object]) -> None:
        from dayfly.runtime import agent
        from dayfly.sandbox import launch, mounts, syscalls

        self.mounts = mounts
        self.agent = agent
        self.control = control
        self.config = config
        self.sys = syscalls
        self.launch = launch
        self.uid, self.gid = os.getuid(), os.getgid()
        self.children: dict[int, bytes] = {}  # pid → instance
        self.own_pid_space = bool(config["pidns"])
        self.home = high(os.open("/proc/self/ns/pid", os.O_RDONLY)) if self.own_pid_space else -1
        self.apart = syscalls.prepared("unshare", syscalls.CLONE_NEWPID)
        self.back = syscalls.prepared("setns", self.home, syscalls.CLONE_NEWPID)
        self.thread_id_address = 0

    def prepare(self) -> None:
        """Walls that all children share, once: the small root, the empty bounding set, the filters."""
        from dayfly.sandbox import heap, mounts

        if self.config["into_cgroup"] or self.config["templates"]:
            self.thread_id_address = self.sys.find_thread_id_address()
        if self.config["mountns"]:
            if self.config["utsns"]:
                self.sys.sethostname("zygote")
            root = mounts.Root()
            root.add_system(sys.base_prefix)
            root.add_devices()
            root.hide(str(self.config["source"]))
            for folder in ("/var/task", "/opt/python", "/proc", "/run/secrets", "/tmp"):  # noqa: S108
                root.add_folder(folder)
            if self.config["userns"]:
                root.add_proc()
            root.add_file("/etc/resolv.conf", str(self.config["resolv_conf"]).encode())
            root.add_file("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
            root.enter()
        if self.config["capabilities"]:
            self.sys.drop_bounding_set()
        self.kit = self.launch.Kit(self.config)
        self.agent.processors = self.kit.processors
        for name in ("root", "null"):
            setattr(self.kit, name, high(getattr(self.kit, name)))
        # What a child would do for the first time is done here: its pages are then shared, and its start is shorter.
        heap.fill_holes()
        self.agent.rehearse()
        self.agent.place_streams()
        gc.disable()  # a child's agent enables it again
        heap.fill_holes()
        gc.freeze()

    def serve(self) -> None:
        """Obey until the node is gone."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        wake, waker = high(wake), high(waker)
        signal.signal(signal.SIGCHLD, noticed)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        self.send(b"ready")
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake:
                    os.read(wake, 512)
                    self.reap()
                elif not self.receive():
                    return

    def receive(self) -> bool:
        """One message of the node. False: it is gone."""
        data, ancillary, flags, _ = self.control.recvmsg(MESSAGE_BYTES_MAX, _RIGHTS_BYTES)
        descriptors = array.array("i")
        for _level, _kind, rights in ancillary:
            descriptors.frombytes(rights[: len(rights) - len(rights) % 4])
        if not data:
            return False
        fields = data.split(b"\0", 6)
        try:
            if fields[0] == b"start":
                self.start(self.launch.Ticket(*fields[1:]), descriptors, flags)
            elif fields[0] == b"kill":
                self.kill(fields[1])
            else:
                with suppress(OSError):  # the namespace is gone: the socket's end says so
                    self.mount_proc(*descriptors)
        except Exception as error:  # whatever is wrong with one start must not end the instances that run
            self.send_failure(fields[1], "fork", error)
            self.send(b"exited %s refused 0 0 0" % fields[1])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def mount_proc(self, space: int, answer: int) -> None:
        """A helper in a pid namespace further down makes a /proc of it and sends it, detached, over the socket `answer`."""
        pid = -1
        try:
            self.sys.setns(space, self.sys.CLONE_NEWPID)
            pid = os.fork()
        finally:
            if pid != 0:
                self.sys.setns(self.home, self.sys.CLONE_NEWPID)
        if pid == 0:
            try:
                self.mounts.send_proc(_socket.socket(fileno=answer))
            finally:
                os._exit(0)
        self.children[pid] = b""

    def start(self, ticket: "launch.Ticket", descriptors: "array.array[int]", flags: int) -> None:
        """Fork one instance. In the child this never returns."""
        child = self.launch.Child(ticket, self.kit)
        if flags & _socket.MSG_CTRUNC or descriptors.tolist() != child.program.arriving:
            raise OSError(errno.EBADF, f"descriptors arrived as {descriptors.tolist()}")
        pid = self.fork(child.program)
        if pid == 0:
            self.become(child)
        self.children[pid] = ticket.instance
        message = [b"forked %s %d" % (ticket.instance, pid)]
        try:
            credentials = array.array("i", (pid, self.uid, self.gid))
            self.control.sendmsg(message, [(_socket.SOL_SOCKET, 2, credentials)])  # SCM_CREDENTIALS
        except PermissionError:  # without privileges over the namespace: then it is the same namespace, and the same number
            self.control.sendmsg(message)

    def fork(self, program: "program.Program") -> int:
        """In a pid namespace of its own where there is one; where cgroups are v2, straight into its group."""
        if "cgroup" in program.descriptors:
            spaces = self.sys.CLONE_NEWPID if self.own_pid_space else 0
            return self.sys.fork_with(spaces, program.descriptors["cgroup"], self.thread_id_address)
        if not self.own_pid_space:
            return os.fork()
        if self.apart() != 0:
            raise self.sys.failure("unshare")
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0 and self.back() != 0:  # back home, so that the next child does not land in this one's namespace
                os._exit(1)
        return pid

    def become(self, child: "launch.Child") -> None:
        """The child: into the sandbox, then serve calls. Never returns."""
        try:
            _signal.set_wakeup_fd(-1)  # the handlers stay: they do nothing, and runtime/boot.py makes all signals ordinary before user code
            child.enter()
        except BaseException as error:
            self.send_failure(child.ticket.instance, child.step, error)
            os._exit(1)
        try:
            agent = self.agent
            if child.program.descriptors.get("seat", 3) > 3:
                agent.serve_template(child.program.descriptors["seat"], child.offspring(self.thread_id_address))
            if child.waits:
                agent.wait_and_serve(3)
            if child.folders:
                agent.serve(3, 4, 5, task_root=child.folders[0], layer_root=child.folders[1])
            agent.serve(3, 4, 5)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)

    def kill(self, instance: bytes) -> None:
        for pid, name in self.children.items():
            if name == instance:
                self.kill_all_of(pid)

    def kill_all_of(self, pid: int) -> None:
        """A pid namespace dies with its first process; without one, the group holds all, because the filter keeps them in it."""
        for end in (os.kill, *([] if self.own_pid_space else [os.killpg])):
            try:
                end(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def reap(self) -> None:
        """Report every child that has ended, with what the kernel says it used."""
        while self.children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            instance = self.children.pop(pid, b"")
            if not instance:
                continue  # an orphan of an instance without a pid namespace
            if not self.own_pid_space:
                self.kill_all_of(pid)
            kind, code = (b"signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (b"exit", os.WEXITSTATUS(status))
            cpu_us = int((usage.ru_utime + usage.ru_stime) * 1e6)
            self.send(b"exited %s %s %d %d %d" % (instance, kind, code, cpu_us, usage.ru_maxrss))

    def send_failure(self, instance: bytes, step: str, error: BaseException) -> None:
        text = f"{step} {type(error).__name__}: {error}"
        self.send(b"failed %s %s" % (instance, text[:500].encode()))

    def send(self, message: bytes) -> None:
        """Tell the node; without it this process has no reason to live."""
        try:
            self.control.send(message)
        except OSError:
            os._exit(0)  # the node is gone, and with this process everything it forked

    def end(self, *_: object) -> None:
        """Kill every instance and leave. A pid namespace would do it by itself."""
        for pid in self.children:
            self.kill_all_of(pid)
        os._exit(0)


def main() -> None:
    """The program. argv[1]: the control socket's descriptor."""
    control = _socket.socket(fileno=high(int(sys.argv[1])))
    config = json.loads(control.recv(MESSAGE_BYTES_MAX))
    sys.argv[:] = [sys.argv[0]]
    os.environ.pop("LD_BIND_NOW", None)  # done: not for user code
    load(config["source"])
    from dayfly.sandbox import launch, mounts, syscalls

    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL if config["pidns"] else signal.SIGTERM, 0, 0)
    flags = (syscalls.CLONE_NEWIPC if config["ipcns"] else 0) | (syscalls.CLONE_NEWUTS if config["utsns"] else 0)
    zygote = Zygote(control, config)
    if config["mountns"]:
        mounts.private_namespace(flags)
    elif not config["pidns"]:
        signal.signal(signal.SIGTERM, zygote.end)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1, 0, 0)
    launch.name_process("dayfly-zygote")
    launch.hide_arguments("dayfly-sandbox")
    launch.join_groups(config["shared_groups"])
    launch.offer_to_oom_killer()
    launch.take_short_turns()
    launch.stand_behind()
    launch.use_processors(config["processors"])
    zygote.prepare()
    zygote.serve()
    zygote.end()


if __name__ == "__main__":
    main()
