"""sandbox/seccomp.py: the program itself, run by a small interpreter of the BPF it uses, for both architectures."""

import struct

import pytest

from dayfly.sandbox import seccomp

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), audit: int = AUDIT["x86_64"]) -> int:
    """What the kernel would return for this call (linux/filter.h semantics of the seven instructions used)."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(arguments + (0,) * 6)[:6])
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = steps = 0
    while True:
        code, yes, no, constant = instructions[at]
        at += 1
        steps += 1
        assert steps < 64, "a lookup takes too long"
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x05:
            at += constant
        elif code == 0x06:
            return constant
        else:
            taken = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}[code]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_exactly_the_listed_calls(machine: str) -> None:
    """Every number up to the newest known is allowed if and only if the list has it; beyond is ENOSYS; foreign architectures die."""
    program = seccomp.program(machine=machine)
    listed = set(seccomp.allowed(machine).values())
    special = {numbers[0 if machine == "x86_64" else 1] for numbers in seccomp._SPECIAL.values()}
    for number in range(463):
        if number not in special:
            assert verdict(program, number, audit=AUDIT[machine]) == (ALLOW if number in listed else ERRNO | 1), number
    for number in (463, 1000, 0x40000000, 0x400000FF, 0xFFFFFFFF):
        assert verdict(program, number, audit=AUDIT[machine]) == ERRNO | 38
    assert verdict(program, 0, audit=0x40000003) == KILL
    assert len(program) // 8 < 4096


DANGEROUS = [
    *("unshare", "setns", "mount", "pivot_root", "ptrace", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "init_module"),
    *("open_by_handle_at", "process_vm_writev", "seccomp", "pidfd_getfd", "kexec_load", "chroot", "fsopen"),
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_calls_are_not_listed(name: str) -> None:
    """No call that changes namespaces, mounts, keys, the kernel or another process is on the list."""
    assert name not in seccomp.allowed("x86_64")
    assert name not in seccomp.allowed("aarch64")


def test_calls_that_depend_on_arguments() -> None:
    """clone without namespaces, local and internet sockets, ordinary ioctls: yes; the rest: no."""
    program = seccomp.program(machine="x86_64")
    clone, clone3, socket_, pair, ioctl, personality, prctl = 56, 435, 41, 53, 16, 135, 157
    assert verdict(program, clone, (0x003D0F00,)) == ALLOW  # a thread
    assert verdict(program, clone, (17,)) == ALLOW  # a fork
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, clone, (flag | 17,)) == ERRNO | 1
    assert verdict(program, clone3) == ERRNO | 38
    assert [verdict(program, socket_, (family,)) for family in (1, 2, 10)] == [ALLOW] * 3
    assert [verdict(program, socket_, (family,)) for family in (0, 16, 17, 31, 38, 40, 44)] == [ERRNO | 97] * 7
    assert (verdict(program, pair, (1,)), verdict(program, pair, (2,))) == (ALLOW, ERRNO | 97)
    assert verdict(program, ioctl, (0, 0x5401)) == ALLOW
    assert [verdict(program, ioctl, (0, request)) for request in (0x5412, 0x541C, (1 << 32) | 0x5412)] == [ERRNO | 1] * 3
    assert [verdict(program, personality, (value,)) for value in (0, 0xFFFFFFFF, 0x40000)] == [ALLOW, ALLOW, ERRNO | 1]
    assert [verdict(program, prctl, (option,)) for option in (15, 35, 1)] == [ALLOW, ERRNO | 1, ALLOW]


def test_narrower_kinds() -> None:
    """Without network namespaces no internet sockets; without pid namespaces no way out of the process group."""
    program = seccomp.program(inet=False, sessions=False, machine="x86_64")
    assert verdict(program, 41, (1,)) == ALLOW
    assert [verdict(program, 41, (family,)) for family in (2, 10)] == [ERRNO | 97] * 2
    assert [verdict(program, number) for number in (112, 109)] == [ERRNO | 1] * 2
    assert verdict(program, 157, (1,)) == ERRNO | 1
    assert [verdict(seccomp.program(machine="x86_64"), number) for number in (112, 109)] == [ALLOW] * 2


def test_unknown_architecture() -> None:
    """Where there is no list there is no filter, and that is an error, not an empty filter."""
    with pytest.raises(OSError):
        seccomp.program(machine="riscv64")
