"""Trees of files for a sandbox: a minimal read-only root, and read-only detached copies of folders.

Standard library only: zygotes use it inside the function's interpreter. Nothing here decides what is visible; the caller says.
It must never mount anything in the host's mount namespace: callers unshare first.
"""

import _socket
import os
import stat
import sys

from dayfly.sandbox import syscalls as sys_

READ_ONLY = sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV
TMPFS_FLAGS = sys_.MS_NOSUID | sys_.MS_NODEV
PROC_FLAGS = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
PROC_SETTINGS = {"subset": "pid", "hidepid": "2"}  # the same, one by one
PROC_ATTRIBUTES = sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV | sys_.MOUNT_ATTR_NOEXEC
PROC_OPTIONS = "subset=pid,hidepid=2"  # subset: Linux 5.8; a private root needs 5.12
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9))
DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("shm", "/tmp"),  # noqa: S108 - POSIX semaphores and shared memory live in the instance's own bounded /tmp
)
# Copied into the new /etc when the host has them: what name, time, type and certificate look-ups read. Nothing secret.
ETC_FILES = (
    "resolv.conf", "hosts", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols", "mime.types", "localtime", "timezone",
    "ld.so.cache", "ssl/openssl.cnf", "os-release",
)  # fmt: skip
ETC_FOLDERS = ("/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/ca-certificates", "/etc/alternatives")
# Below /usr: nothing that a program runs with. Covered by an empty folder; every cover costs each start one or two microseconds.
HIDDEN = ("/usr/src", "/usr/include", "/usr/share/doc", "/usr/lib/modules", "/usr/lib/debug")
PACKAGES = ("site-packages", "dist-packages")  # of somebody's Python: not for functions, who bring their own
NOTHING = "/var/empty"
SYSTEM_FOLDERS = ("/lib", "/lib64", "/lib32", "/bin", "/sbin")
FILE_BYTES_MAX = 4 * 1024 * 1024


def private_namespace(extra: int = 0) -> None:
    """A mount namespace of our own from which nothing leaks back. `extra`: more CLONE_* flags for the same call."""
    sys_.unshare(sys_.CLONE_NEWNS | extra)
    sys_.mount("", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)


def step_aside(extra: int = 0) -> None:
    """A mount namespace of our own that still sees what the machine mounts, but nothing made in it is seen by the machine. For the node,
    which mounts in others' namespaces: a mistake there would hit itself, not the machine."""
    sys_.unshare(sys_.CLONE_NEWNS | extra)
    sys_.mount("", "/", "", sys_.MS_REC | sys_.MS_SLAVE)


def detach_read_only(path: str, directory: int = sys_.AT_FDCWD) -> int:
    """A detached read-only, nosuid, nodev copy of the tree at `path` (empty: of the descriptor `directory` itself).

    Mounts inside it come along only where the kernel insists (a tree with locked mounts in a user namespace).
    """
    try:
        tree, recursive = sys_.open_tree(directory, path), 0
    except OSError:
        tree, recursive = sys_.open_tree(directory, path, sys_.AT_RECURSIVE), sys_.AT_RECURSIVE
    try:
        sys_.mount_setattr(tree, READ_ONLY, recursive)
    except OSError:
        os.close(tree)
        raise
    return tree


def open_beneath(directory: int, name: str) -> int:
    """An O_PATH descriptor of the folder `name` in `directory`, following no link of any kind: its owner is not trusted."""
    rules = sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_SYMLINKS | sys_.RESOLVE_NO_MAGICLINKS
    return sys_.openat2(directory, name, os.O_PATH | os.O_DIRECTORY, rules)


def attach(tree: int, target: str) -> None:
    """Mount a detached tree and close its descriptor."""
    try:
        sys_.move_mount(tree, target)
    finally:
        os.close(tree)


def make_folders(path: str) -> None:
    """`mkdir -p` with mode 0755 whatever the umask."""
    current = ""
    for part in path.strip("/").split("/"):
        current += "/" + part
        if not os.path.isdir(current):
            os.mkdir(current, 0o755)


class Root:
    """A new root under construction. Collect what it holds, then `enter()` once; afterwards the old root is gone.

    Trees are detached from the host *before* the new root is mounted, so that its mount point may cover them.
    """

    def __init__(self, stage: str = "/tmp", size_bytes: int = 8 * 1024 * 1024) -> None:  # noqa: S108 - covered, never written
        self.stage = stage
        self._size = size_bytes
        self._trees: list[tuple[int, str, bool]] = []
        self._files: list[tuple[str, bytes]] = []
        self._links: list[tuple[str, str]] = []
        self._folders: list[tuple[str, int]] = []
        self._hidden: list[str] = []
        self._proc = False

    def __repr__(self) -> str:
        return f"<Root {[path for _, path, _ in self._trees]}>"

    def add_tree(self, source: str, target: str = "") -> None:
        """Show a host folder or file read-only, at the same path or at `target`."""
        self._trees.append((detach_read_only(os.path.realpath(source)), target or source, os.path.isdir(source)))

    def add_descriptor(self, tree: int, target: str, folder: bool = True) -> None:
        """Show a tree that is detached already; attaching closes it."""
        self._trees.append((tree, target, folder))

    def add_file(self, path: str, content: bytes) -> None:
        self._files.append((path, content))

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        self._folders.append((path, mode))

    def add_system(self, prefix: str) -> None:
        """What an interpreter with this prefix needs: /usr, the library folders, its prefix, certificates, a small /etc."""
        self.add_tree("/usr")
        for folder in SYSTEM_FOLDERS:
            if os.path.islink(folder):
                self._links.append((folder, os.readlink(folder)))
            elif os.path.isdir(folder):
                self.add_tree(folder)
        if not (prefix + "/").startswith("/usr/"):
            self.add_tree(prefix)
        self._hidden += [*HIDDEN, *installed_packages(("/usr", "/usr/local", prefix))]
        self.add_folder(NOTHING)
        for folder in ETC_FOLDERS:
            if os.path.isdir(folder):
                self.add_tree(folder)
        for name in ETC_FILES:
            content = read_file(f"/etc/{name}")
            if content is not None:
                self.add_file(f"/etc/{name}", content)
        self.add_file("/etc/passwd", b"root:x:0:0:root:/:/usr/sbin/nologin\n")
        self.add_file("/etc/group", b"root:x:0:\n")

    def hide(self, path: str) -> None:
        """Show an empty folder in the place of this one, should it be in a tree that is shown."""
        self._hidden.append(path)

    def add_proc(self) -> None:
        """This pid namespace's whole /proc. In a user namespace, only who sees one may mount another later; children cover it."""
        self._proc = True
        self.add_folder("/proc")

    def enter(self) -> None:
        """Build the root, walk into it, let go of the old one, and make it read-only. Needs a private mount namespace."""
        flags = sys_.MS_NOSUID | sys_.MS_NODEV
        sys_.mount("dayfly", self.stage, "tmpfs", flags, f"mode=0755,size={self._size},nr_inodes=8192")
        os.umask(0o022)
        for path, mode in self._folders:
            make_folders(self.stage + path)
            os.chmod(self.stage + path, mode)
        for path, content in self._files:
            self._write(path, content)
        for path, target in self._links:
            os.symlink(target, self.stage + path)
        for tree, path, folder in self._trees:
            make_folders(self.stage + (path if folder else os.path.dirname(path)))
            if not folder:
                self._write(path, b"")
            attach(tree, self.stage + path)
        self._trees.clear()
        self._cover()
        if self._proc:
            sys_.mount("proc", self.stage + "/proc", "proc", flags | sys_.MS_NOEXEC)
        os.chdir(self.stage)
        sys_.pivot_root(".", ".")
        sys_.umount(".", sys_.MNT_DETACH)
        os.chdir("/")
        sys_.mount("", "/", "", sys_.MS_REMOUNT | sys_.MS_BIND | sys_.MS_RDONLY | flags)

    def _cover(self) -> None:
        """Only what is really there and has something in it: a link leads to something that is shown or not by itself."""
        for path in dict.fromkeys(self._hidden):
            if os.path.realpath(path) == path and os.path.isdir(self.stage + path) and os.listdir(self.stage + path):
                attach(detach_read_only(self.stage + NOTHING), self.stage + path)

    def _write(self, path: str, content: bytes) -> None:
        make_folders(self.stage + os.path.dirname(path))
        with open(self.stage + path, "wb") as file:
            file.write(content)

    def add_devices(self) -> None:
        """A /dev with null, zero, full, random and urandom, and nothing else. Call before `enter`."""
        try:
            tree = _new_device_tree()
        except OSError:  # in a user namespace device nodes cannot be made: show the host's, one mount each
            for name, _, _ in DEVICES:
                self._trees.append((_detach_device(f"/dev/{name}"), f"/dev/{name}", False))
            self._links += [(f"/dev/{name}", target) for name, target in DEVICE_LINKS]
            self.add_folder("/dev")
        else:
            self._trees.append((tree, "/dev", True))


def installed_packages(prefixes: tuple[str, ...]) -> list[str]:
    """Folders of installed packages, of whichever Python, below these prefixes."""
    found = []
    for library in dict.fromkeys(f"{prefix.rstrip('/')}/lib" for prefix in prefixes):
        try:
            versions = [name for name in os.listdir(library) if name.startswith("python")]
        except OSError:
            continue
        found += [f"{library}/{version}/{packages}" for version in versions for packages in PACKAGES]
    return found


def _new_device_tree() -> int:
    """A detached tmpfs with device nodes. It is mounted over /dev of the caller's private namespace only while it is filled."""
    spot = "/dev"
    sys_.mount("dayfly-dev", spot, "tmpfs", sys_.MS_NOSUID | sys_.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=64")
    try:
        for name, major, minor in DEVICES:
            os.mknod(f"{spot}/{name}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
            os.chmod(f"{spot}/{name}", 0o666)  # noqa: S103 - everybody may use these devices
            with open(f"{spot}/{name}", "rb"):
                pass  # a file system that forbids devices says so here
        for name, target in DEVICE_LINKS:
            os.symlink(target, f"{spot}/{name}")
        tree = sys_.open_tree(sys_.AT_FDCWD, spot)
        sys_.mount_setattr(tree, sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NOEXEC)
    finally:
        sys_.umount(spot)
    return tree


def _detach_device(path: str) -> int:
    tree = sys_.open_tree(sys_.AT_FDCWD, path)
    sys_.mount_setattr(tree, sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NOEXEC)
    return tree


def read_file(path: str) -> bytes | None:
    """A host file's content, or None when it is not there, not a plain file, or larger than it should be."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError:
        return None
    return content if len(content) <= FILE_BYTES_MAX else None


def mount_proc(target: str = "/proc") -> None:
    """This pid namespace's own /proc, processes only: no kernel files, nobody else's processes."""
    sys_.mount("proc", target, "proc", PROC_FLAGS, PROC_OPTIONS)


def send_proc(answer: _socket.socket) -> None:
    """Send a detached mount of this pid namespace's own /proc over a socket, or why there is none."""
    try:
        tree = sys_.new_mount("proc", PROC_SETTINGS, PROC_ATTRIBUTES)
        answer.sendmsg([b"proc"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, tree.to_bytes(4, sys.byteorder))])
    except OSError as error:
        answer.send(str(error).encode()[:500])


def mount_tmpfs(target: str, options: str) -> None:
    sys_.mount("tmpfs", target, "tmpfs", TMPFS_FLAGS, options)


def remount_read_only(target: str) -> None:
    flags = sys_.MS_REMOUNT | sys_.MS_BIND | sys_.MS_RDONLY | sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
    sys_.mount("", target, "", flags)
