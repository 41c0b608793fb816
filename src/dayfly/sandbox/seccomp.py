"""The seccomp filter of an instance: an allow-list of system calls, assembled here into the kernel's BPF.

What is not listed answers EPERM; calls newer than this list answer ENOSYS, so libc falls back as on an older kernel; a foreign
architecture's calls kill. It must never list a call that changes namespaces, mounts, keys, the kernel, or another process.
Standard library only: zygotes assemble it once at their start (launch.py) and each child installs the bytes.

The list is looked up by binary search over ranges of numbers, about eight comparisons; the kernel skips even those for calls
that are always allowed (its per-filter bitmap). docs/security.md gives the reason for each choice that is not obvious.
"""

import os
from struct import pack
from typing import NamedTuple

# name : number on x86_64 : number on aarch64 ("-" where the call does not exist)
_ALLOWED = """
accept:43:202 accept4:288:242 access:21:- alarm:37:- arch_prctl:158:- bind:49:200 brk:12:214
capget:125:90 capset:126:91 chdir:80:49 chmod:90:- chown:92:- clock_getres:229:114 clock_gettime:228:113
clock_nanosleep:230:115 close:3:57 close_range:436:436 connect:42:203 copy_file_range:326:285 creat:85:- dup:32:23
dup2:33:- dup3:292:24 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_pwait:281:22 epoll_pwait2:441:441
epoll_wait:232:- eventfd:284:- eventfd2:290:19 execve:59:221 execveat:322:281 exit:60:93 exit_group:231:94
faccessat:269:48 faccessat2:439:439 fallocate:285:47 fchdir:81:50 fchmod:91:52 fchmodat:268:53
fchmodat2:452:452 fchown:93:55 fchownat:260:54 fdatasync:75:83 fgetxattr:193:10 flistxattr:196:13 flock:73:32
fork:57:- fremovexattr:199:16 fsetxattr:190:7 fstat:5:80 fstatfs:138:44 fsync:74:82 ftruncate:77:46 futex:202:98
futex_requeue:456:456 futex_wait:455:455 futex_waitv:449:449 futex_wake:454:454 futimesat:261:- get_mempolicy:239:236
get_robust_list:274:100 getcpu:309:168 getcwd:79:17 getdents:78:- getdents64:217:61 getegid:108:177 geteuid:107:175
getgid:104:176 getgroups:115:158 getitimer:36:102 getpeername:52:205 getpgid:121:155 getpgrp:111:- getpid:39:172
getppid:110:173 getpriority:140:141 getrandom:318:278 getresgid:120:150 getresuid:118:148 getrlimit:97:163
getrusage:98:165 getsid:124:156 getsockname:51:204 gettid:186:178 gettimeofday:96:169 getuid:102:174
getxattr:191:8 ioprio_get:252:31
ioprio_set:251:30 kill:62:129 landlock_add_rule:445:445 landlock_create_ruleset:444:444 landlock_restrict_self:446:446
lchown:94:- lgetxattr:192:9 link:86:- linkat:265:37 listen:50:201 listxattr:194:11 llistxattr:195:12 lremovexattr:198:15
lseek:8:62 lsetxattr:189:6 lstat:6:- map_shadow_stack:453:453 membarrier:324:283
 mincore:27:232 mkdir:83:- mkdirat:258:34 mknod:133:- mknodat:259:33 mlock:149:228 mlock2:325:284
mlockall:151:230 mprotect:10:226 mq_getsetattr:245:185 mq_notify:244:184 mq_open:240:180
mq_timedreceive:243:183 mq_timedsend:242:182 mq_unlink:241:181 mremap:25:216 mseal:462:462 msgctl:71:187 msgget:68:186
msgrcv:70:188 msgsnd:69:189 msync:26:227 munlock:150:229 munlockall:152:231 munmap:11:215 nanosleep:35:101
newfstatat:262:79 open:2:- openat:257:56 openat2:437:437 pause:34:- pidfd_open:434:434 pidfd_send_signal:424:424 pipe:22:-
pipe2:293:59 pkey_alloc:330:289 pkey_free:331:290 pkey_mprotect:329:288 poll:7:- ppoll:271:73 pread64:17:67 preadv:295:69
 pselect6:270:72 pwrite64:18:68 pwritev:296:70 pwritev2:328:287 read:0:63
readahead:187:213 readlink:89:- readlinkat:267:78 readv:19:65 recvfrom:45:207 recvmmsg:299:243 recvmsg:47:212
removexattr:197:14 rename:82:- renameat:264:38 renameat2:316:276 restart_syscall:219:128 rmdir:84:- rseq:334:293
rt_sigaction:13:134 rt_sigpending:127:136 rt_sigprocmask:14:135 rt_sigqueueinfo:129:138 rt_sigreturn:15:139
rt_sigsuspend:130:133 rt_sigtimedwait:128:137 rt_tgsigqueueinfo:297:240 sched_get_priority_max:146:125
sched_get_priority_min:147:126 sched_getaffinity:204:123 sched_getattr:315:275 sched_getparam:143:121
sched_getscheduler:145:120 sched_rr_get_interval:148:127 sched_setaffinity:203:122
sched_setparam:142:118 sched_setscheduler:144:119 sched_yield:24:124 select:23:- semctl:66:191 semget:64:190 semop:65:193
semtimedop:220:192 sendfile:40:71 sendmmsg:307:269 sendmsg:46:211 sendto:44:206
set_robust_list:273:99 set_tid_address:218:96 setfsgid:123:152 setfsuid:122:151 setgid:106:144 setgroups:116:159
setitimer:38:103 setpriority:141:140 setregid:114:143 setresgid:119:149 setresuid:117:147 setreuid:113:145
 setuid:105:146 setxattr:188:5 shmat:30:196 shmctl:31:195 shmdt:67:197
shutdown:48:210 sigaltstack:131:132 signalfd:282:- signalfd4:289:74 splice:275:76 stat:4:- statfs:137:43 statx:332:291
symlink:88:- symlinkat:266:36 sync_file_range:277:84 sysinfo:99:179 tee:276:77 tgkill:234:131 time:201:-
timer_create:222:107 timer_delete:226:111 timer_getoverrun:225:109 timer_gettime:224:108 timer_settime:223:110
timerfd_create:283:85 timerfd_gettime:287:87 timerfd_settime:286:86 times:100:153 tkill:200:130 truncate:76:45
umask:95:166 uname:63:160 unlink:87:- unlinkat:263:35 utime:132:- utimensat:280:88 utimes:235:- vfork:58:-
wait4:61:260 waitid:247:95 write:1:64 writev:20:66"""

# Calls that depend on an argument, see `_special`: name → (x86_64, aarch64).
_SPECIAL = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
    "personality": (135, 92),
    "prctl": (157, 167),
    "madvise": (28, 233),
    "fadvise64": (221, 223),
    "fcntl": (72, 25),
    "preadv2": (327, 286),
    "mmap": (9, 222),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "setsid": (112, 157),
    "setpgid": (109, 154),
}
_LAST = 462  # the newest call this list knows

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS, _ENOPROTOOPT, _EPROTONOSUPPORT, _EAFNOSUPPORT = 1, 25, 38, 92, 93, 97
_LOAD, _JUMP, _JEQ, _JGE, _JSET, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06

# NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET NEWTIME is 0x80, which in clone() is part of the exit signal: harmless.
_CLONE_NAMESPACES, _CLONE_EXIT_SIGNAL = 0x7E020000, 0xFF
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCKET_TYPES, _SOCKET_TYPE_MASK = (1, 2, 5), 0xF  # stream, datagram, seqpacket: never raw (3) or packet (10)
_PROTOCOLS = (0, 6, 17)  # the family's own, TCP, UDP: no SCTP, DCCP, MPTCP, ping
# level → (options refused, first of all the higher ones that are refused). Other levels belong to sockets that nobody can open here.
_SOCKET_OPTIONS = {
    0: ((16, 17), 64),  # SOL_IP: IPsec policies; iptables, arptables, ebtables, IPVS
    1: ((26, 50, 51, 52), 0),  # SOL_SOCKET: filter programs
    6: ((19, 31), 0),  # SOL_TCP: repair; protocols on top (kTLS)
    17: ((100,), 0),  # SOL_UDP: encapsulation (IPsec)
    41: ((1, 34, 35, 64, 65, 68, 69), 80),  # SOL_IPV6: change to IPv4; IPsec policies; ip6tables (66 and 67 are the traffic class)
}
# What files, pipes and sockets answer; of interfaces only what reads (SIOCGIF*). No terminals, devices, name spaces, file systems' own.
_IOCTLS = (
    0x0002, 0x5401, 0x540F, 0x5411, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x5452, 0x5460,
    *range(0x8901, 0x8908),
    0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x8921, 0x8927, 0x8933, 0x8942, 0x8970,
    0x4004_9409, 0x4020_940D, 0x8008_6601, 0x801C_581F, 0xC020_660B,
)  # fmt: skip
_PR_SET_PDEATHSIG = 1
# Of oneself: death signal, dumpable, capabilities kept or dropped, name, filters, timer slack, reaper, no_new_privs, huge pages, CPU state.
_PRCTLS = (
    _PR_SET_PDEATHSIG, 2, 3, 4, 7, 8, 15, 16, 21, 22, 23, 24, 27, 28, 29, 30, 36, 37, 38, 39, 40, 41, 42, 47, 50, 51, 52, 54, 55, 56,
    60, 61, 65, 66, 0x4155_5856, 0x5356_4D41, 0x5961_6D61,
)  # fmt: skip
_RLIMIT_CORE = 4  # stays at 1: at 0, a core_pattern that names a program would have it run, outside, on what a function left
# call → (argument, what it must not be): merging equal pages, memory failures; throwing pages that others use out of memory; leases and
# dnotify (who opens a folder's files).
_NOT_THESE = {"madvise": (2, (12, 100, 101)), "fadvise64": (3, (4,)), "fcntl": (1, (1024, 1026))}
# call → (argument, bits it must not have, the answer): asking whether a page is in memory; huge pages, which no memory limit counts.
_NOT_WITH = {"preadv2": (5, 8, 95), "mmap": (3, 0x40000, 12), "memfd_create": (1, 4, 22), "shmget": (2, 0x800, 1)}
# System V and POSIX objects: shared with everybody where there is no ipc namespace.
_IPC = ("msg", "sem", "shm", "mq_")

_RUNGS = 6  # so many answers are compared in a row, without branches: then the kernel's form of the program fits into one page

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class _Kind(NamedTuple):
    """Which filter: see `program`."""

    inet: bool
    sessions: bool
    children: int


def _return(value: int) -> list[_Instruction]:
    return [(_RETURN, 0, 0, value)]


def _argument(index: int) -> _Instruction:
    """Load the low half of an argument. The high half is ignored: the kernel takes these arguments as 32-bit integers, but for
    clone's flags, whose high half it ignores too."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _listed(index: int, values: tuple[int, ...], yes: int, no: int) -> list[_Instruction]:
    """Return `yes` when the argument is one of `values`, else `no`."""
    return [_argument(index), *_in(values), *_return(no), *_return(yes)]


def _in(values: tuple[int, ...]) -> list[_Instruction]:
    """Skip the one instruction that follows when the accumulator is one of `values`."""
    return [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]


def _socket(families: tuple[int, ...], kinds: tuple[int, ...]) -> list[_Instruction]:
    """Which sockets can be made: family, then type, then protocol."""
    protocol = _listed(2, _PROTOCOLS, _ALLOW, _ERRNO | _EPROTONOSUPPORT)
    kind = [_argument(1), (_AND, 0, 0, _SOCKET_TYPE_MASK), *_in(kinds), *_return(_ERRNO | _EPERM), *protocol]
    return [_argument(0), *_in(families), *_return(_ERRNO | _EAFNOSUPPORT), *kind]


def _socket_options() -> list[_Instruction]:
    """Options by level. Each level is a piece of its own; the next one's begins behind it."""
    refused, code = _ERRNO | _EPERM, [_argument(1)]
    for level, (options, bound) in _SOCKET_OPTIONS.items():
        above = [(_JGE, 0, 1, bound), *_return(refused)] if bound else []
        piece = [_argument(2), *above, *_in(options), *_return(_ALLOW), *_return(refused)]
        code += [(_JEQ, 0, len(piece), level), *piece]
    return [*code, *_return(_ERRNO | _ENOPROTOOPT)]


def _limits(sessions: bool) -> list[_Instruction]:
    """prlimit64: reads all limits, sets all but core dumps'; without namespaces only of the caller itself (pid 0)."""
    high_half = (_LOAD, 0, 0, 16 + 8 * 2 + 4)
    sets_none = [_argument(2), (_JEQ, 0, 2, 0), high_half, (_JEQ, 1, 0, 0), *_return(_ERRNO | _EPERM), *_return(_ALLOW)]
    own = [] if sessions else [_argument(0), (_JEQ, 1, 0, 0), *_return(_ERRNO | _EPERM)]
    return [*own, _argument(1), (_JEQ, 1, 0, _RLIMIT_CORE), *_return(_ALLOW), *sets_none]


def _clone(children: int) -> list[_Instruction]:
    """Without new namespaces, or with exactly the flags `children` (see `program`)."""
    exactly = [(_AND, 0, 0, 0xFFFFFFFF & ~_CLONE_EXIT_SIGNAL), (_JEQ, 1, 0, children)] if children else []
    return [_argument(0), (_JSET, 0, len(exactly) + 1, _CLONE_NAMESPACES), *exactly, *_return(_ERRNO | _EPERM), *_return(_ALLOW)]


def _special(name: str, kind: _Kind) -> list[_Instruction]:
    refused = _ERRNO | _EPERM
    if name.startswith(_IPC) and not kind.sessions:
        return _return(refused)
    if name == "clone":
        return _clone(kind.children)
    if name == "clone3":  # its flags are behind a pointer, which a filter cannot follow; libc falls back to clone
        return _return(_ERRNO | _ENOSYS)
    if name == "socket":
        return _socket((_AF_UNIX, _AF_INET, _AF_INET6) if kind.inet else (_AF_UNIX,), _SOCKET_TYPES)
    if name == "socketpair":
        return _socket((_AF_UNIX,), _SOCKET_TYPES)
    if name in ("setsockopt", "getsockopt"):
        return _socket_options()
    if name == "ioctl":  # ENOTTY is what a descriptor answers that does not know a request
        return _listed(1, _IOCTLS, _ALLOW, _ERRNO | _ENOTTY)
    if name in _NOT_THESE:
        return _listed(*_NOT_THESE[name], refused, _ALLOW)
    if name in _NOT_WITH:
        index, bits, answer = _NOT_WITH[name]
        return [_argument(index), (_JSET, 0, 1, bits), *_return(_ERRNO | answer), *_return(_ALLOW)]
    if name == "setrlimit":
        return _listed(0, (_RLIMIT_CORE,), refused, _ALLOW)
    if name == "prlimit64":
        return _limits(kind.sessions)
    if name == "personality":
        return _listed(0, (0, 0xFFFFFFFF), _ALLOW, refused)
    if name == "prctl":
        return _listed(0, _PRCTLS if kind.sessions else _PRCTLS[1:], _ALLOW, refused)
    assert name in ("setsid", "setpgid")
    return _return(_ALLOW if kind.sessions else refused)


def _ladder(pieces: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """A few pieces that only answer: compared from the highest down, and each answer is there once."""
    answers = list(dict.fromkeys(code[0] for _, code in pieces))
    rungs = pieces[:0:-1]
    return [*((_JGE, len(rungs) - 1 - i + answers.index(code[0]), 0, bound) for i, (bound, code) in enumerate(rungs)), *answers]


def _search(pieces: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """A binary search tree over (first number, code) pieces in rising order; the call's number is in the accumulator."""
    if len(pieces) <= _RUNGS and all(len(code) == 1 for _, code in pieces):
        return _ladder(pieces)
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    low, high = _search(pieces[:middle]), _search(pieces[middle:])
    bound = pieces[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, bound), *low, *high]
    return [(_JGE, 0, 1, bound), (_JUMP, 0, 0, len(low)), *low, *high]


def allowed(machine: str = "") -> dict[str, int]:
    """Names and numbers of the calls that are always allowed on an architecture (this machine's by default)."""
    column = _architecture(machine)[1]
    rows = (entry.split(":") for entry in _ALLOWED.split())
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _architecture(machine: str) -> tuple[int, int]:
    name = machine or os.uname().machine
    if name not in _ARCHITECTURES:
        raise OSError(_ENOSYS, f"no system call list for {name}")
    return _ARCHITECTURES[name]


def program(*, inet: bool = True, sessions: bool = True, children: int = 0, machine: str = "") -> bytes:
    """The filter as bytes for `syscalls.seccomp_filter`.

    `inet` False refuses IPv4 and IPv6 sockets: how egress "none" holds where network namespaces are missing. `sessions` False is for
    machines without namespaces: it keeps a process in its group and its parent-death signal set, so that an instance's processes
    stay findable, and refuses shared memory and queues that others could open. `children`, if not 0, is the one set of flags with
    new namespaces that clone accepts, exactly (the low byte, the exit signal, aside): for templates, which fork such children.
    Raises OSError on an architecture without a list.
    """
    audit, column = _architecture(machine)
    kind = _Kind(inet, sessions, children)
    refused = _return(_ERRNO | _EPERM)
    names = allowed(machine)
    actions = {number: _return(_ALLOW) for name, number in names.items() if sessions or not name.startswith(_IPC)}
    actions |= {numbers[column]: _special(name, kind) for name, numbers in _SPECIAL.items()}
    pieces: list[tuple[int, list[_Instruction]]] = [(0, actions.get(0, refused))]
    for number in range(1, _LAST + 2):
        code = actions.get(number, refused) if number <= _LAST else _return(_ERRNO | _ENOSYS)
        if code != pieces[-1][1]:
            pieces.append((number, code))
    instructions = [
        (_LOAD, 0, 0, 4),
        (_JEQ, 1, 0, audit),
        *_return(_KILL),
        (_LOAD, 0, 0, 0),
        *_search(pieces),
    ]
    return b"".join(pack("<HBBI", *instruction) for instruction in instructions)
