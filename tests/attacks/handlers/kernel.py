"""System calls that would change walls, the kernel or other processes; files of the kernel's. Runs in sandboxes only."""

import ctypes
import errno
import os
import platform
import signal
import struct
import subprocess

LIBC = ctypes.CDLL(None, use_errno=True)
COLUMN = 0 if platform.machine() == "x86_64" else 1
P = os.getpid()
PAGE = ctypes.create_string_buffer(4096)
USER, NET, MOUNT, PID, IPC, UTS, CGROUP, TIME = 0x10000000, 0x40000000, 0x20000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80
NAMESPACES = {"user": USER, "net": NET, "mount": MOUNT, "pid": PID, "ipc": IPC, "uts": UTS, "cgroup": CGROUP, "time": TIME}

# name → (number on x86_64, number on aarch64, arguments). Arguments are such that the call would do something if it were let through.
CALLS = {
    "mount": (165, 40, (b"none", b"/tmp", b"tmpfs", 0, None)),
    "umount2": (166, 39, (b"/tmp", 2)),
    "pivot_root": (155, 41, (b"/tmp", b"/tmp")),
    "chroot": (161, 51, (b"/tmp",)),
    **{f"unshare {name}": (272, 97, (flag,)) for name, flag in NAMESPACES.items()},
    "setns": (308, 268, (-1, 0)),
    "open_tree": (428, 428, (-100, b"/tmp", 1)),
    "move_mount": (429, 429, (-100, b"/tmp", -100, b"/tmp", 0)),
    "fsopen": (430, 430, (b"tmpfs", 0)),
    "fsmount": (432, 432, (-1, 0, 0)),
    "fspick": (433, 433, (-100, b"/tmp", 0)),
    "mount_setattr": (442, 442, (-100, b"/", 0, PAGE, 32)),
    "statmount": (457, 457, (PAGE, PAGE, 4096, 0)),
    "ptrace traceme": (101, 117, (0, 0, 0, 0)),
    "ptrace attach": (101, 117, (16, P, 0, 0)),
    "ptrace seize": (101, 117, (0x4206, P, 0, 0)),
    "process_vm_readv": (310, 270, (P, PAGE, 0, PAGE, 0, 0)),
    "process_vm_writev": (311, 271, (P, PAGE, 0, PAGE, 0, 0)),
    "process_madvise": (440, 440, (-1, PAGE, 0, 4, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "kcmp": (312, 272, (P, P, 0, 0, 0)),
    "bpf": (321, 280, (0, PAGE, 64)),
    "perf_event_open": (298, 241, (PAGE, 0, -1, -1, 0)),
    "io_uring_setup": (425, 425, (8, PAGE)),
    "io_uring_enter": (426, 426, (-1, 0, 0, 0, None, 0)),
    "io_uring_register": (427, 427, (-1, 0, None, 0)),
    "userfaultfd": (323, 282, (1,)),
    "kexec_load": (246, 104, (0, 0, None, 0)),
    "kexec_file_load": (320, 294, (-1, -1, 0, None, 0)),
    "add_key": (248, 217, (b"user", b"mine", b"word", 4, -3)),
    "request_key": (249, 218, (b"user", b"mine", None, -3)),
    **{f"keyctl {number}": (250, 219, (number, -3, 0, 0, 0)) for number in (0, 1, 3, 6, 10, 11, 32)},
    "personality": (135, 92, (0x0040000,)),
    "personality READ_IMPLIES_EXEC": (135, 92, (0x0400000,)),
    "init_module": (175, 105, (PAGE, 64, b"")),
    "finit_module": (313, 273, (-1, b"", 0)),
    "delete_module": (176, 106, (b"nothing", 0)),
    "reboot": (169, 142, (0, 0, 0, None)),
    "swapon": (167, 224, (b"/tmp/none", 0)),
    "swapoff": (168, 225, (b"/tmp/none",)),
    "acct": (163, 89, (b"/tmp/none",)),
    "quotactl": (179, 60, (0, None, 0, None)),
    "syslog": (103, 116, (3, PAGE, 4096)),
    "sethostname": (170, 161, (b"mine", 4)),
    "setdomainname": (171, 162, (b"mine", 4)),
    "settimeofday": (164, 170, (PAGE, None)),
    "clock_settime": (227, 112, (0, PAGE)),
    "clock_adjtime": (305, 266, (0, PAGE)),
    "adjtimex": (159, 171, (PAGE,)),
    "open_by_handle_at": (304, 265, (-100, PAGE, 0)),
    "name_to_handle_at": (303, 264, (-100, b"/tmp", PAGE, PAGE, 0)),
    "fanotify_init": (300, 262, (0, 0)),
    "vhangup": (153, 58, ()),
    "seccomp": (317, 277, (1, 0, PAGE)),
    "memfd_secret": (447, 447, (0,)),
    "move_pages": (279, 239, (P, 0, None, None, None, 0)),
    "migrate_pages": (256, 238, (P, 64, PAGE, PAGE)),
    "lookup_dcookie": (212, 18, (0, PAGE, 64)),
    "nfsservctl": (180, 42, (0, None, None)),
    "remap_file_pages": (216, 234, (0, 0, 0, 0, 0)),
    "clone3": (435, 435, (PAGE, 88)),
}
if COLUMN == 0:
    CALLS |= {
        "iopl": (172, 0, (3,)),
        "ioperm": (173, 0, (0, 1, 1)),
        "modify_ldt": (154, 0, (0, PAGE, 16)),
        "uselib": (134, 0, (b"/bin/sh",)),
        "sysfs": (139, 0, (3,)),
        "ustat": (136, 0, (0, PAGE)),
        "create_module": (174, 0, (b"mine", 4096)),
        "x32 getpid": (0x40000000 | 39, 0, ()),
        "x32 ptrace": (0x40000000 | 521, 0, (0, 0, 0, 0)),
    }


def _raw(number, arguments):
    done = LIBC.syscall(number, *arguments)
    return "worked" if done >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def calls(event):
    """Every call of the table: the error's name, or "worked"."""
    return {name: _raw((x86, arm)[COLUMN], arguments) for name, (x86, arm, arguments) in CALLS.items()}


def clones(event):
    """clone() with each namespace's flag (SIGCHLD as the exit signal), straight to the kernel; a child would end at once."""
    said = {}
    for name, flag in NAMESPACES.items():
        if name == "time":
            continue  # in clone() that bit is part of the exit signal
        pid = LIBC.syscall((56, 220)[COLUMN], flag | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid > 0:
            os.waitpid(pid, 0)
        said[name] = "worked" if pid > 0 else errno.errorcode.get(ctypes.get_errno(), "?")
    return said


FOREIGN = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid in i386); int 0x80; ret


def foreign(event):
    """A 32-bit system call from 64-bit code, in a child: how the child ended, and a plain child beside it."""
    import mmap

    said = {}
    for label, code in (("int 0x80", FOREIGN), ("nothing", b"\xc3")):
        pid = os.fork()
        if pid == 0:
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            os._exit(0)
        said[label] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said


def namespaces(event):
    """Enter our own namespaces and those of pid 1 by their files."""
    said = {}
    for kind in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
        for pid in ("self", "1", str(os.getppid())):
            try:
                descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
            except OSError as error:
                said[f"{pid} {kind}"] = errno.errorcode[error.errno]
                continue
            done = LIBC.setns(descriptor, 0)
            said[f"{pid} {kind}"] = "worked" if done == 0 else errno.errorcode[ctypes.get_errno()]
            os.close(descriptor)
    return said


def write(event):
    """Open each path for writing and write the text; what worked is named."""
    said = {}
    for path, text in event["paths"]:
        try:
            with open(path, "w") as file:
                file.write(text)
            said[path] = "worked"
        except OSError as error:
            said[path] = errno.errorcode.get(error.errno, str(error.errno))
    return said


def exe(event):
    """Overwrite the interpreter that runs us, and a program that a child runs, through /proc/PID/exe (CVE-2019-5736)."""
    child = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE)
    said = {}
    try:
        for label, path in (("self", "/proc/self/exe"), ("child", f"/proc/{child.pid}/exe")):
            held = os.open(path, os.O_PATH)
            for way, opened in (("write", path), ("truncate", path), ("through a descriptor", f"/proc/self/fd/{held}")):
                try:
                    os.close(os.open(opened, os.O_WRONLY | (os.O_TRUNC if way == "truncate" else 0)))
                    said[f"{label} {way}"] = "worked"
                except OSError as error:
                    said[f"{label} {way}"] = errno.errorcode[error.errno]
            os.close(held)
    finally:
        child.communicate()
    child = subprocess.Popen(["/bin/sh", "-c", "exit 0"])
    child.wait()
    return said


def cgroups(event):
    """Control group file systems that can be seen, files of theirs found anywhere, and what our own entry tells."""
    with open("/proc/self/mountinfo") as file:
        mounts = [line for line in file if " - cgroup" in line]
    names = ("release_agent", "notify_on_release", "cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max")
    found = [os.path.join(folder, name) for folder, _, files in os.walk("/sys") for name in files if name in names]
    with open("/proc/self/cgroup") as file:
        own = file.read()
    return {"mounts": mounts, "found": found, "own": own, "sys": os.path.exists("/sys")}


def core(event):
    """Dump core in a child (a segmentation fault): its status says whether a core was written."""
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(0)
    status = os.waitpid(pid, 0)[1]
    return {"signal": os.WTERMSIG(status), "dumped": os.WCOREDUMP(status), "files": [n for n in os.listdir("/tmp") if "core" in n]}


def privileges(event):
    """Become somebody, get something back."""
    said = {}
    for name, action in {
        "setuid 0": lambda: os.setuid(0),
        "setgid 0": lambda: os.setgid(0),
        "setresuid": lambda: os.setresuid(0, 0, 0),
        "setgroups": lambda: os.setgroups([0]),
        "mknod": lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)),
        "mknod memory": lambda: os.mknod("/tmp/mem", 0o20666, os.makedev(1, 1)),
        "rlimit up": lambda: __import__("resource").setrlimit(7, (1 << 20, 1 << 20)),
        "core up": lambda: __import__("resource").setrlimit(4, (1 << 30, 1 << 30)),
    }.items():
        try:
            action()
            said[name] = "worked"
        except (OSError, ValueError, OverflowError) as error:
            said[name] = type(error).__name__
    header = struct.pack("Ii", 0x20080522, 0)
    everything = struct.pack("6I", *([0xFFFFFFFF] * 6))
    said["capset"] = "worked" if LIBC.capset(header, everything) == 0 else errno.errorcode[ctypes.get_errno()]
    for number in range(41):
        for label, option in (("bounding", 24), ("ambient", 47)):
            arguments = (option, 2, number, 0, 0) if label == "ambient" else (option, number, 0, 0, 0)
            if LIBC.prctl(*arguments) == 0 and label == "ambient":
                said[f"ambient {number}"] = "worked"
    said["dumpable"] = LIBC.prctl(4, 1, 0, 0, 0)
    said["no_new_privs off"] = "worked" if LIBC.prctl(38, 0, 0, 0, 0) == 0 else errno.errorcode[ctypes.get_errno()]
    said["securebits"] = "worked" if LIBC.prctl(28, 0x2F, 0, 0, 0) == 0 else errno.errorcode[ctypes.get_errno()]
    said["PR_SET_MM"] = "worked" if LIBC.prctl(35, 1, 0, 0, 0) == 0 else errno.errorcode[ctypes.get_errno()]
    return said
