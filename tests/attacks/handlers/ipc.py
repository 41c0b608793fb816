"""Things that processes share by name or number: held out by one instance, looked for by another. Runs in sandboxes only."""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
ADD_KEY, REQUEST_KEY, KEYCTL = (248, 249, 250) if X86 else (217, 218, 219)
MQ_OPEN = 240 if X86 else 180
IPC_CREAT, IPC_STAT, SHM_STAT, MSG_STAT, SEM_STAT = 0o1000, 2, 13, 11, 18
O_CREAT_RDWR = os.O_CREAT | os.O_RDWR
LIBC.shmat.restype = ctypes.c_void_p
kept = []


def done(value):
    return value if value >= 0 else -ctypes.get_errno()


def raw(number, *arguments):
    return done(LIBC.syscall(number, *arguments))


def hold(event):
    """Hold out one of each kind under the event's key and name, open to all."""
    key, name = event["key"], event["name"]
    said = {}
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind("\0" + name)
        server.listen(8)
        kept.append(server)
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        said["abstract"] = 0
    except OSError as error:
        said["abstract"] = -error.errno
    said["shm"] = done(LIBC.shmget(key, 4096, IPC_CREAT | 0o666))
    if said["shm"] >= 0:
        LIBC.memmove(ctypes.c_void_p(LIBC.shmat(said["shm"], None, 0)), event["word"].encode(), len(event["word"]))
    said["msg"] = done(LIBC.msgget(key, IPC_CREAT | 0o666))
    said["sem"] = done(LIBC.semget(key, 1, IPC_CREAT | 0o666))
    said["mq"] = raw(MQ_OPEN, name.encode(), O_CREAT_RDWR, 0o666, None)
    try:
        with open(f"/dev/shm/{name}", "w") as file:
            file.write(event["word"])
        os.chmod(f"/dev/shm/{name}", 0o666)
        said["posix"] = 0
    except OSError as error:
        said["posix"] = -error.errno
    said["key"] = raw(ADD_KEY, b"user", name.encode(), event["word"].encode(), len(event["word"]), -4)  # the uid's own keyring
    return said


def _serve(server):
    while True:
        client, _ = server.accept()
        client.sendall(b"taken")
        client.close()


def look(event):
    """Look for what others hold out under this key and name, and for whatever else there is."""
    key, name = event["key"], event["name"]
    said = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        said["abstract"] = -client.connect_ex("\0" + name)
    said["shm"] = done(LIBC.shmget(key, 4096, 0))
    said["msg"] = done(LIBC.msgget(key, 0))
    said["sem"] = done(LIBC.semget(key, 1, 0))
    said["mq"] = raw(MQ_OPEN, name.encode(), os.O_RDWR, 0, None)
    said["posix"] = 0 if os.path.exists(f"/dev/shm/{name}") else -errno.ENOENT
    said["key"] = raw(REQUEST_KEY, b"user", name.encode(), None, 0)
    for number, keyring in enumerate((-1, -2, -3, -4, -5)):
        said[f"key read {number}"] = raw(KEYCTL, 11, keyring, ctypes.create_string_buffer(64), 64)
    said["key join"] = raw(KEYCTL, 1, name.encode())
    buffer = ctypes.create_string_buffer(512)
    said["numbers"] = [
        kind
        for kind, call in (
            ("shm", lambda n: LIBC.shmctl(n, SHM_STAT, buffer)),
            ("shm", lambda n: LIBC.shmctl(n, IPC_STAT, buffer)),
            ("msg", lambda n: LIBC.msgctl(n, MSG_STAT, buffer)),
            ("msg", lambda n: LIBC.msgctl(n, IPC_STAT, buffer)),
            ("sem", lambda n: LIBC.semctl(n, 0, SEM_STAT, buffer)),
        )
        for n in range(256)
        if call(n) >= 0
    ]
    said["proc"] = [
        path
        for path in ("/proc/sysvipc/shm", "/proc/keys", "/proc/key-users", "/proc/net/unix", "/proc/locks")
        if _holds(path, event["name"])
    ]
    said["mqueue"] = os.path.isdir("/dev/mqueue")
    return said


def _holds(path, name):
    try:
        with open(path) as file:
            return name in file.read()
    except OSError:
        return False


def remove(event):
    """Remove, by every number, what one could."""
    for number in range(256):
        LIBC.shmctl(number, 0, None)
        LIBC.msgctl(number, 0, None)
        LIBC.semctl(number, 0, 0)
    return "tried"


def still(event):
    """Whether what we held is still as it was."""
    segment = LIBC.shmget(event["key"], 4096, 0)
    if segment < 0:
        return None
    return ctypes.string_at(LIBC.shmat(segment, None, 0), len(event["word"])).decode()


def lock(event):
    """A file lock on what all instances see (the interpreter), held for as long as this instance lives: it must stop nobody."""
    if kept:
        return "locked already"
    descriptor = os.open(os.__file__, os.O_RDONLY)
    kept.append(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "locked"
    except OSError as error:
        return error.errno
