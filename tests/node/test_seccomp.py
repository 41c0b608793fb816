"""sandbox/seccomp.py: the program itself, run by a small interpreter of the BPF it uses, for both architectures."""

import struct

import pytest

from dayfly.sandbox import seccomp

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), audit: int = AUDIT["x86_64"]) -> int:
    """What the kernel would return for this call (linux/filter.h semantics of the eight instructions used)."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(arguments + (0,) * 6)[:6])
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = steps = 0
    while True:
        code, yes, no, constant = instructions[at]
        at += 1
        steps += 1
        assert steps < 80, "a lookup takes too long"
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x54:
            accumulator &= constant
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


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("children", [0, 0x7C020000])
def test_each_instances_copy_in_the_kernel_fits_into_one_page(machine: str, children: int) -> None:
    """Counted as bpf_convert_filter (net/core/filter.c) translates: a return is two instructions, and so is a jump with two targets, a
    constant above 2^31 one more; seven go before, and the program has a head."""
    size = 7
    for code, yes, no, constant in struct.iter_unpack("<HBBI", seccomp.program(children=children, machine=machine)):
        jumps = code in (0x15, 0x35, 0x45)
        size += 2 if code == 0x06 or (jumps and yes and no) else 1
        size += jumps and constant >> 31
    assert size * 8 + 128 <= 4096


DANGEROUS = [
    *("unshare", "setns", "mount", "pivot_root", "ptrace", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "init_module"),
    *("open_by_handle_at", "process_vm_writev", "seccomp", "pidfd_getfd", "kexec_load", "chroot", "fsopen"),
    *("clock_settime", "clock_adjtime", "adjtimex", "settimeofday", "kcmp", "vmsplice", "mbind", "set_mempolicy", "syncfs", "sync"),
    *("add_key", "request_key", "perf_event_open", "delete_module", "finit_module", "reboot", "swapon", "quotactl", "acct", "syslog"),
    *("inotify_init", "inotify_init1", "inotify_add_watch", "fanotify_init", "fanotify_mark"),
    *("cachestat", "name_to_handle_at", "process_madvise", "migrate_pages", "move_pages", "remap_file_pages", "modify_ldt", "iopl"),
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_calls_are_not_listed(name: str) -> None:
    """No call that changes namespaces, mounts, keys, the kernel or another process is on the list."""
    assert name not in seccomp.allowed("x86_64")
    assert name not in seccomp.allowed("aarch64")


def test_calls_that_depend_on_arguments() -> None:
    """clone without namespaces, local and internet sockets, ordinary ioctls: yes; the rest: no."""
    program = seccomp.program(machine="x86_64")
    clone, clone3, pair, ioctl, personality, prctl = 56, 435, 53, 16, 135, 157
    assert verdict(program, clone, (0x003D0F00,)) == ALLOW  # a thread
    assert verdict(program, clone, (17,)) == ALLOW  # a fork
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, clone, (flag | 17,)) == ERRNO | 1
    assert verdict(program, clone3) == ERRNO | 38
    assert (verdict(program, pair, (1, 1)), verdict(program, pair, (2, 1))) == (ALLOW, ERRNO | 97)
    assert [verdict(program, ioctl, (0, request)) for request in (0x5401, 0x541B, 0x5421, 0x8912)] == [ALLOW] * 4
    refused = (0x5412, 0x541C, (1 << 32) | 0x5412, 0x8914, 0x8916, 0x89A2, 0x8946, 0x40086602, 0xB701, 0xAE01)
    assert [verdict(program, ioctl, (0, request)) for request in refused] == [ERRNO | 25] * len(refused)
    assert [verdict(program, personality, (value,)) for value in (0, 0xFFFFFFFF, 0x40000)] == [ALLOW, ALLOW, ERRNO | 1]
    assert [verdict(program, prctl, (option,)) for option in (1, 4, 15, 22, 23, 38)] == [ALLOW] * 6
    assert [verdict(program, prctl, (option,)) for option in (35, 53, 59, 62, 67, 0)] == [ERRNO | 1] * 6
    assert [verdict(program, 28, (0, 0, advice)) for advice in (4, 12, 101)] == [ALLOW, ERRNO | 1, ERRNO | 1]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_sockets(machine: str) -> None:
    """Streams, datagrams and seqpackets of three families, with TCP, UDP or the family's own protocol; never raw or packet sockets."""
    program, audit = seccomp.program(machine=machine), AUDIT[machine]
    number = seccomp._SPECIAL["socket"][machine == "aarch64"]

    def made(family: int, kind: int, protocol: int = 0) -> int:
        return verdict(program, number, (family, kind, protocol), audit)

    assert {made(family, kind | flags) for family in (1, 2, 10) for kind in (1, 2, 5) for flags in (0, 0x80800)} == {ALLOW}
    assert {made(family, 1) for family in (0, 3, 16, 17, 31, 38, 40, 43, 44)} == {ERRNO | 97}
    assert {made(family, kind | flags) for family in (1, 2, 10) for kind in (0, 3, 4, 6, 10) for flags in (0, 0x80000)} == {ERRNO | 1}
    assert {made(2, 1, 6), made(10, 2, 17)} == {ALLOW}
    assert {made(2, kind, protocol) for kind in (1, 2, 5) for protocol in (1, 33, 58, 115, 132, 136, 255, 262)} == {ERRNO | 93}


FINE = ((1, 2), (1, 9), (6, 1), (6, 4), (0, 1), (0, 8), (0, 35), (41, 26), (41, 49), (41, 67), (17, 103))
HIGH = (64, 65, 80, 96, 97, 128, 129, 131, 1152, 0xFFFFFFFF)  # ip_tables, ip6_tables, arp_tables, ebtables, IPVS
NOT_FINE = ((0, 66), (0, 67), (0, 99), (0, 16), (41, 35), (41, 1), (1, 26), (1, 50), (6, 31), (6, 19), (17, 100))
SOCKET_OPTIONS = [
    *((level, option, True) for level, option in FINE),
    *((level, option, False) for level in (0, 41) for option in HIGH),
    *((level, option, False) for level, option in NOT_FINE),
]


@pytest.mark.parametrize("name", ["setsockopt", "getsockopt"])
@pytest.mark.parametrize(("level", "option", "fine"), SOCKET_OPTIONS)
def test_socket_options(name: str, level: int, option: int, fine: bool) -> None:
    """Ordinary options pass; packet filters, IPsec, filter programs and protocols on top do not, though a name space's root could."""
    program = seccomp.program(machine="x86_64")
    number = seccomp._SPECIAL[name][0]
    assert verdict(program, number, (3, level, option)) == (ALLOW if fine else ERRNO | 1)
    assert verdict(program, number, (3, (1 << 32) | level, option)) == (ALLOW if fine else ERRNO | 1), "the kernel ignores the high half"
    assert verdict(program, number, (3, 263, option)) == ERRNO | 92


def test_the_limit_of_core_dumps_cannot_be_changed() -> None:
    """Every limit can be read, and every other one set; without namespaces only one's own."""
    program, narrow = seccomp.program(machine="x86_64"), seccomp.program(sessions=False, machine="x86_64")
    setrlimit, prlimit = 160, 302
    assert [verdict(program, setrlimit, (resource, 1)) for resource in (3, 4, 7)] == [ALLOW, ERRNO | 1, ALLOW]
    for pointer in (1, 1 << 32, (1 << 32) | 1):
        assert [verdict(program, prlimit, (0, resource, pointer)) for resource in (3, 4, 7)] == [ALLOW, ERRNO | 1, ALLOW]
    assert verdict(program, prlimit, (0, 4, 0, 1)) == verdict(program, prlimit, (5, 7, 1)) == ALLOW
    assert (verdict(narrow, prlimit, (5, 7, 1)), verdict(narrow, prlimit, (0, 7, 1))) == (ERRNO | 1, ALLOW)


def test_huge_pages_are_nobodys() -> None:
    """No memory limit counts them, and the machine's are somebody else's."""
    program = seccomp.program(machine="x86_64")
    assert [verdict(program, 9, (0, 1, 3, flags)) for flags in (0x22, 0x40022, 0x5404_0022)] == [
        ALLOW,
        ERRNO | 12,
        ERRNO | 12,
    ]
    assert [verdict(program, 319, (0, flags)) for flags in (1, 2, 4, 5)] == [ALLOW, ALLOW, ERRNO | 22, ERRNO | 22]
    assert [verdict(program, 29, (0, 1, flags)) for flags in (0o1600, 0o5600)] == [ALLOW, ERRNO | 1]


def test_the_page_cache_is_not_asked_nor_emptied() -> None:
    """Files of the machine are common: reading them without waiting tells who used them, and giving them up makes others wait."""
    program = seccomp.program(machine="x86_64")
    assert [verdict(program, 327, (3, 0, 1, 0, 0, flags)) for flags in (0, 1, 8, 9)] == [ALLOW, ALLOW, ERRNO | 95, ERRNO | 95]
    assert [verdict(program, 72, (3, command)) for command in (2, 4, 1024, 1026, 1033)] == [ALLOW, ALLOW, ERRNO | 1, ERRNO | 1, ALLOW]
    assert [verdict(program, 221, (3, 0, 0, advice)) for advice in (0, 2, 3, 4, 5)] == [ALLOW, ALLOW, ALLOW, ERRNO | 1, ALLOW]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_one_set_of_clone_flags_for_templates(machine: str) -> None:
    """With `children`, clone accepts exactly these flags beside none at all, whatever the exit signal; without, never."""
    wanted = 0x7E020000 & ~0x02000000
    number, audit = seccomp._SPECIAL["clone"][machine == "aarch64"], AUDIT[machine]
    with_children = seccomp.program(children=wanted, machine=machine)
    for program, verdict_of_wanted in ((with_children, ALLOW), (seccomp.program(machine=machine), ERRNO | 1)):
        assert verdict(program, number, (wanted | 17,), audit) == verdict_of_wanted
        assert verdict(program, number, (wanted,), audit) == verdict_of_wanted
        assert verdict(program, number, (17,), audit) == verdict(program, number, (0x003D0F00,), audit) == ALLOW
        for bit in range(8, 32):
            other = (wanted ^ 1 << bit) | 17
            assert verdict(program, number, (other,), audit) == ERRNO | 1, hex(other)
        assert verdict(program, number, (0x10000000 | 17,), audit) == ERRNO | 1
    assert verdict(with_children, seccomp._SPECIAL["clone3"][0], (), audit) == ERRNO | 38


def test_narrower_kinds() -> None:
    """Without network namespaces no internet sockets; without pid namespaces no way out of the process group."""
    program = seccomp.program(inet=False, sessions=False, machine="x86_64")
    assert verdict(program, 41, (1, 1)) == ALLOW
    assert [verdict(program, 41, (family, 1)) for family in (2, 10)] == [ERRNO | 97] * 2
    assert [verdict(program, number) for number in (29, 30, 64, 66, 68, 240)] == [ERRNO | 1] * 6  # shm, sem, msg, mq_open
    assert [verdict(seccomp.program(machine="x86_64"), number) for number in (29, 30, 64, 66, 68, 240)] == [ALLOW] * 6
    assert [verdict(program, number) for number in (112, 109)] == [ERRNO | 1] * 2
    assert verdict(program, 157, (1,)) == ERRNO | 1
    assert [verdict(seccomp.program(machine="x86_64"), number) for number in (112, 109)] == [ALLOW] * 2


def test_unknown_architecture() -> None:
    """Where there is no list there is no filter, and that is an error, not an empty filter."""
    with pytest.raises(OSError):
        seccomp.program(machine="riscv64")
