"""Files that are not the function's: reading, finding, connecting to, replacing and writing them. Runs in sandboxes only."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time

TMP = os.environ.get("TMPDIR", "/tmp")
LOOKED_AT_MAX = 60_000


def name_of(error):
    return f"{type(error).__name__} {getattr(error, 'errno', '')}"


def look(path):
    """A folder's names or a file's beginning; the error's name when there is nothing to see."""
    try:
        if os.path.isdir(path):
            return sorted(os.listdir(path))[:20]
        with open(path, "rb") as file:
            return file.read(256).decode("latin-1")
    except (OSError, ValueError) as error:
        return {"refused": name_of(error)}


def read(event):
    """Every path, also by the ways around: our root, pid 1's root, a descriptor of our folder, dots."""
    detours = ("", "/proc/self/root", "/proc/1/root", "/proc/thread-self/root", "/proc/self/cwd/../../../..", "/var/task/../../../..")
    return {detour + path: look(detour + path) for path in event["paths"] for detour in detours}


def hunt(event):
    """Walk all that can be seen for names or small files that hold one of the needles; /usr and the interpreter are everybody's."""
    found, looked = [], 0
    needles = [bytes.fromhex(needle)[::-1] for needle in event["needles"]]
    for folder, folders, names in os.walk("/", onerror=None):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in event["skip"]]
        for name in names:
            path = os.path.join(folder, name)
            looked += 1
            if looked > LOOKED_AT_MAX:
                return {"found": found, "looked": looked}
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 4 << 20:
                    with open(path, "rb") as file:
                        content = file.read()
                    found += [path for needle in needles if needle in content]
            except OSError:
                continue
    return {"found": found, "looked": looked}


def connect(event):
    """Unix sockets by path, and through /proc's ways to other roots."""
    said = {}
    for path in event["paths"]:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as client:
                try:
                    client.connect(path)
                    said[f"{path} {int(kind)}"] = "connected"
                except OSError as error:
                    said[f"{path} {int(kind)}"] = name_of(error)
    return said


def _write(path):
    with open(path, "ab") as file:
        file.write(b"#")


def _reopen(path):
    """For writing, through the descriptor of a file opened for reading."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY))
    finally:
        os.close(descriptor)


def _link(path):
    os.link(path, f"{TMP}/linked")
    _write(f"{TMP}/linked")


def _replace(path):
    with open(f"{TMP}/mine", "w") as file:
        file.write("mine")
    os.rename(f"{TMP}/mine", path)


def _exchange(path):
    """renameat2 with RENAME_EXCHANGE."""
    _write(f"{TMP}/other")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, f"{TMP}/other".encode(), -100, path.encode(), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


WAYS = {
    "append": _write,
    "reopen": _reopen,
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "utime": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.mine", b"1"),
    "unlink": lambda path: shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path),
    "link": _link,
    "replace": _replace,
    "exchange": _exchange,
}


def change(event):
    """Every way to change every path; what worked is named."""
    said = {}
    for path in event["paths"]:
        for way, action in WAYS.items():
            try:
                action(path)
                said[f"{way} {path}"] = "worked"
            except OSError as error:
                said[f"{way} {path}"] = name_of(error)
    return said


def create(event):
    """A new file in each folder."""
    said = {}
    for folder in event["folders"]:
        try:
            with open(f"{folder}/planted", "w") as file:
                file.write("x")
            said[folder] = "worked"
        except OSError as error:
            said[folder] = name_of(error)
    return said


SHOW_UIDS = 'while read -r name real effective rest; do case "$name" in Uid:) echo $real $effective;; esac; done < /proc/self/status'


def setuid(event):
    """What a setuid program runs as: one that the test put into our code as root's, and a copy that we make ourselves."""
    said = {"me": os.getuid()}
    for label, program in (("planted", "/var/task/shell"), ("own", f"{TMP}/shell")):
        if label == "own":
            shutil.copyfile("/var/task/shell", program)
            os.chmod(program, 0o6755)
        done = subprocess.run([program, "-p", "-c", SHOW_UIDS], capture_output=True, text=True)
        said[label] = [int(number) for number in done.stdout.split()] or done.stderr
    said["mode"] = oct(os.stat("/var/task/shell").st_mode)
    return said


def links(event):
    """Links in /tmp to what is not ours, under every name that the platform might use there; left behind for whoever cleans up."""
    for number, target in enumerate(event["targets"]):
        for name in ("secrets", "scratch", "core", ".X11-unix", f"link{number}"):
            os.makedirs(f"{TMP}/{number}", exist_ok=True)
            path = f"{TMP}/{number}/{name}"
            if os.path.islink(path):
                os.unlink(path)
            os.symlink(target, path)
    return {target: look(f"{TMP}/{number}/secrets") for number, target in enumerate(event["targets"])}


def race(event):
    """A name that is now a folder, now a link out: read through it all the while."""
    inside, target = f"{TMP}/race", event["target"]
    os.makedirs(inside + ".folder", exist_ok=True)
    with open(f"{inside}.folder/canary", "w") as file:
        file.write("own")
    if not os.path.islink(inside + ".link"):
        os.symlink(target, inside + ".link")
    over = threading.Event()
    libc = ctypes.CDLL(None, use_errno=True)
    os.rename(f"{inside}.folder", inside)
    seen, tries = set(), 0

    def swap():
        while not over.is_set():
            libc.renameat2(-100, inside.encode(), -100, f"{inside}.link".encode(), 2)

    swapper = threading.Thread(target=swap)
    swapper.start()
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        tries += 1
        try:
            with open(f"{inside}/canary") as file:
                seen.add(file.read())
        except OSError as error:
            seen.add(type(error).__name__)
    over.set()
    swapper.join()
    if os.path.islink(inside):
        libc.renameat2(-100, inside.encode(), -100, f"{inside}.link".encode(), 2)
    shutil.rmtree(inside)
    return {"seen": sorted(seen), "tries": tries}


def leave(event):
    """Files behind for whoever has this uid next."""
    planted = []
    for folder in (TMP, "/dev/shm", "/var/tmp", "/run", "/dev/mqueue", "/var/task"):
        try:
            with open(f"{folder}/left-behind", "w") as file:
                file.write(event["word"])
            os.chmod(f"{folder}/left-behind", 0o777)
            planted.append(folder)
        except OSError:
            continue
    return {"planted": planted, "uid": os.getuid(), "tmp": sorted(os.listdir(TMP))}


def go(event):
    os._exit(3)
