"""One network namespace for an instance, made and furnished: loopback, and with internet the sockets that get its connections.

sandbox/network.py keeps a pool of them and calls this. Must never leave the calling thread in a foreign namespace.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

from dayfly.core.wire.egress import OWN_ADDRESS, PROXY_PORT
from dayfly.sandbox import bpf, netlink, syscalls

OWN = "/proc/thread-self/ns/net"  # the calling thread's network namespace
_BACKLOG = 512
_IPV6_FREEBIND = 78  # linux/in6.h; Python does not name it


def has_global_ipv6() -> bool:
    """Whether this machine has a route and a global source address for IPv6. Connecting a UDP socket sends nothing.

    Without it an instance must see "network unreachable" at once: a steered connection would first seem to succeed, and
    clients that try IPv6 first would never fall back to IPv4.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.connect(("2000::1", 53))
        return socket.inet_pton(socket.AF_INET6, probe.getsockname()[0])[0] >> 5 == 1  # 2000::/3
    return False


def can_return_to(home: int) -> bool:
    """False for root of a user namespace that does not own the network namespace it is in."""
    try:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
    except OSError:
        return False
    return True


def made_here(home: int, kind: str, ipv6: bool) -> list[int]:
    """Make a namespace on the calling thread and come back. Descriptors: namespace, sockets, link."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    try:
        return _furnished(kind, ipv6)
    finally:
        try:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
        except OSError as error:
            _abandon(f"cannot return to the host's network namespace: {error}")


def furnished_there(home: int, there: int, kind: str, ipv6: bool) -> list[int]:
    """Furnish a namespace that somebody else made, and come back. Descriptors as of `made_here`; Raises OSError."""
    with _inside(there, home):
        return _furnished(kind, ipv6)


def is_untouched(home: int, there: int) -> bool:
    """Look into a closed namespace and come back: whether no socket lives in it and its loopback has never carried anything. Raises
    OSError when it cannot be entered."""
    with _inside(there, home):
        sockets, devices = _read_whole("/proc/thread-self/net/sockstat"), _read_whole("/proc/thread-self/net/dev")
    counts = [line.partition(b":")[2].split() for line in devices.splitlines()[2:]]  # below two lines of headings, one for each device
    return sockets.startswith(b"sockets: used 0\n") and bool(counts) and not any(int(count) for line in counts for count in line)


@contextlib.contextmanager
def _inside(there: int, home: int) -> Iterator[None]:
    syscalls.setns(there, syscalls.CLONE_NEWNET)
    try:
        yield
    finally:
        try:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
        except OSError as error:
            _abandon(f"cannot return to the host's network namespace: {error}")


def _read_whole(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 8192)
    finally:
        os.close(descriptor)


def made_in_child(kind: str, ipv6: bool) -> list[int]:
    """The same in a short-lived child: root of a user namespace cannot return to a network namespace it does not own."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _child(childs, kind, ipv6)
    childs.close()
    with ours:
        message, descriptors, _, _ = socket.recv_fds(ours, 256, 8)
    for fd in descriptors:  # recv_fds loses its flags (CPython 3.11 to 3.13), MSG_CMSG_CLOEXEC too
        os.set_inheritable(fd, False)
    with contextlib.suppress(ChildProcessError):  # the node may reap all of its children in a signal handler
        os.waitpid(pid, 0)
    if not descriptors:
        number, _, text = message.decode().partition(" ")
        raise OSError(int(number or 0), text or "the namespace helper died")
    return descriptors


def _child(answer: socket.socket, kind: str, ipv6: bool) -> NoReturn:
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        socket.send_fds(answer, [b"ok"], _furnished(kind, ipv6))
    except OSError as error:
        answer.send(f"{error.errno or 0} {error.strerror or error}".encode()[:256])
    finally:
        os._exit(0)


def _furnished(kind: str, ipv6: bool) -> list[int]:
    """Bring the calling thread's fresh namespace into the wanted shape. Descriptors: namespace, sockets, link."""
    with contextlib.ExitStack() as opened:
        netns = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, netns)
        netlink.raise_loopback()
        sockets: list[socket.socket] = []
        link: list[int] = []
        if kind == "steered":
            messages = [netlink.loopback_address(OWN_ADDRESS), netlink.everything_is_local(socket.AF_INET, OWN_ADDRESS)]
            messages += [netlink.everything_is_local(socket.AF_INET6)] if ipv6 else []
            netlink.carry_out(messages)
            sockets = [opened.enter_context(_listener(bpf.DNS_PORT)), opened.enter_context(_resolver())]
            link = [bpf.steer(netns, sockets[0], sockets[1], OWN_ADDRESS)]
        elif kind == "proxy":
            sockets = [opened.enter_context(_listener(PROXY_PORT, "127.0.0.1"))]
        opened.pop_all()
        return [netns, *(one.detach() for one in sockets), *link]


def _open_socket(kind: socket.SocketKind) -> socket.socket:
    """IPv6 for both families where the kernel has it; then an IPv4 peer shows as ::ffff:a.b.c.d."""
    try:
        opened = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    except OSError:
        return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return opened


def _listener(port: int, address: str = "") -> socket.socket:
    """Port 53 is below 1024: no code in an instance can have it, and none that it wants is taken from it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) if address else _open_socket(socket.SOCK_STREAM)
    listener.bind((address, port))
    listener.listen(_BACKLOG)
    return listener


def _resolver() -> socket.socket:
    """The UDP socket that gets every datagram to port 53; packet info tells which address it was sent to, to answer from there."""
    resolver = _open_socket(socket.SOCK_DGRAM)
    if resolver.family == socket.AF_INET6:
        resolver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        resolver.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)  # answers come from addresses that nobody has
    else:
        resolver.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_PKTINFO", 8), 1)
    resolver.bind(("", bpf.DNS_PORT))
    return resolver


def _abandon(why: str) -> NoReturn:
    """In a foreign namespace nothing the node does would be right any more; its supervisor starts a new one."""
    sys.stderr.write(f"dayfly node: {why}\n")
    sys.stderr.flush()
    os._exit(70)
