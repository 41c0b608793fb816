"""System calls at random from inside a sandbox, by a fuzzer of ours and by stress-ng, for a bounded time: the node survives.

Debian's trinity does not fit: it ends at once where it may neither write to /dev/zero nor list /sys.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.attacks.arena import Arena, Attacker

SECONDS = 3.0
SEED = int(os.environ.get("DAYFLY_FUZZ_SEED", "0")) or time.time_ns() % 1_000_000  # said with every failure
STRESSORS = [
    "access,affinity,bad-altstack,bad-ioctl,chmod,clone,schedpolicy,dentry,dev,dup",
    "enosys,env,eventfd,exec,fault,fcntl,flock,fork,fpunch,fstat,futex",
    "get,getdent,handle,inotify,io-uring,itimer,key,kill,link,locka,madvise,memfd",
    "mincore,misaligned,mknod,mlock,mmap,mmapfork,mprotect,mq,mremap,msg,msync,munmap",
    "nanosleep,netlink-proc,null,opcode,open,pageswap,personality,pidfd,pipe,poll,prctl,procfs",
    "ptrace,pty,resources,rlimit,sem-sysv,sendfile,set,shm,shm-sysv,sigfd,signal,sock,sockabuse,sockfd,sockpair,splice",
    "stack,switch,symlink,sysbadaddr,enosys,tee,timer,timerfd,tmpfs,udp,unshare,userfaultfd,utime,vforkmany,vm,wait,xattr,zombie",
]


def survived(arena: Arena, alive: set[int], attacker: Attacker) -> None:
    assert arena.alive() == alive, f"a role died; seed {SEED}\n{arena.platform.log_text()}"
    attacker.works()


@pytest.mark.parametrize("keep", [False, True])
def test_our_fuzzer(arena: Arena, keep: bool) -> None:
    """From many processes with seeds of their own; with `keep` they have the instance's sockets too, and may well end it."""
    attacker = arena.attacker("fuzz", name=f"fuzz{keep}".lower(), memory_mb=256, timeout_seconds=20)
    alive = arena.alive()
    answer = arena.unharmed(lambda: attacker.call("ours", seconds=SECONDS, seed=SEED, children=24, keep=keep))
    if not keep:
        said = answer.json()
        assert "seeds" in said, f"seed {SEED}: {said}"
        assert said["seeds"] > 50, said
    survived(arena, alive, attacker)


def bundled(program: str) -> dict[str, bytes]:
    """The program and every library it needs, for a bundle; skips when this machine has it not."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed here; scripts/test installs it when root may")
    lines = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.splitlines()
    libraries = [word for line in lines for word in line.split() if word.startswith("/")]
    return {f"bin/{program}": Path(path).read_bytes()} | {f"lib/{Path(one).name}": Path(one).read_bytes() for one in libraries}


def fuzzer(arena: Arena, program: str) -> tuple[Attacker, str]:
    """An attacker with the program in its bundle, and the loader that starts it."""
    files = bundled(program)
    loader = next(Path(name).name for name in files if name.startswith("lib/ld-"))
    return arena.attacker("fuzz", name=program, files=files, memory_mb=512, timeout_seconds=30), loader


@pytest.mark.parametrize("group", range(len(STRESSORS)))
def test_stress_ng(arena: Arena, group: int) -> None:
    attacker, loader = fuzzer(arena, "stress-ng")
    alive = arena.alive()
    known = set(subprocess.run(["stress-ng", "--stressors"], capture_output=True, text=True, check=True).stdout.split())
    wanted = [name for name in STRESSORS[group].split(",") if name in known]  # releases differ
    arguments = [*(word for name in wanted for word in (f"--{name}", "1")), "--timeout", "1", "--temp-path", "/tmp/work", "--metrics-brief"]
    answer = arena.unharmed(lambda: attacker.call("program", program="stress-ng", loader=loader, arguments=arguments, seconds=4))
    said = answer.json()
    assert len(wanted) > 5 and ("text" not in said or "run completed" in said["text"] or said["status"] == "time"), said
    survived(arena, alive, attacker)
