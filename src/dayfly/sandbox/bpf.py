"""One small BPF program: inside a network namespace, steer what would leave it to the broker's two sockets.

Program type BPF_PROG_TYPE_SK_LOOKUP (Linux 5.9, Documentation/bpf/prog_sk_lookup.rst): it runs where the kernel looks for the
socket of a new TCP connection or of a UDP datagram that has no connected socket. Assembled here, because an assembler for
thirty instructions is smaller than any BPF library, and loaded with bpf(2) through ctypes. Called by sandbox/network.py, as
root; must never decide which destinations are allowed: that is core/decide/egress.py, asked by the broker.
"""

import contextlib
import ctypes
import os
import platform
import socket
import struct
import sys

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}.get(platform.machine())
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_MAP_TYPE_SOCKMAP, _PROG_TYPE_SK_LOOKUP, _ATTACH_SK_LOOKUP = 15, 30, 36
_HELPER_MAP_LOOKUP, _HELPER_SK_RELEASE, _HELPER_SK_ASSIGN = 1, 86, 124

TCP_KEY, DNS_KEY = 0, 1
DNS_PORT = 53

# struct bpf_sk_lookup (linux/bpf.h): offsets of the fields we read. "local" is the destination of the packet.
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6, _LOCAL_PORT = 8, 12, 40, 44, 60
_DROP, _PASS = 0, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _word(data: bytes) -> int:
    """Four bytes in network order as the signed immediate that equals them when loaded as one word on this machine."""
    return int.from_bytes(data, sys.byteorder, signed=True)


class _Assembler:
    """Instructions with labels. Each is 8 bytes: opcode, registers, 16-bit jump offset, 32-bit immediate."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int, int, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._instructions)

    def emit(self, code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0, to: str = "") -> None:
        self._instructions.append((code, dst, src, offset, value, to))

    def load(self, dst: int, offset: int) -> None:
        self.emit(0x61, dst, 6, offset)  # dst = *(u32 *)(r6 + offset); r6 holds the context

    def copy(self, dst: int, src: int) -> None:
        self.emit(0xBF, dst, src)

    def put(self, dst: int, value: int) -> None:
        self.emit(0xB7, dst, value=value)

    def jump(self, to: str) -> None:
        self.emit(0x05, to=to)

    def jump_if(self, register: int, value: int, to: str) -> None:
        self.emit(0x16, register, value=value, to=to)  # 32-bit compare: immediates are not sign-extended

    def jump_unless(self, register: int, value: int, to: str) -> None:
        self.emit(0x56, register, value=value, to=to)

    def call(self, helper: int) -> None:
        self.emit(0x85, value=helper)

    def finish(self, result: int) -> None:
        self.put(0, result)
        self.emit(0x95)

    def assembled(self) -> bytes:
        little = sys.byteorder == "little"
        out = bytearray()
        for position, (code, dst, src, offset, value, to) in enumerate(self._instructions):
            jump = self._labels[to] - position - 1 if to else offset
            registers = src << 4 | dst if little else dst << 4 | src
            out += struct.pack("=BBhi", code, registers, jump, value)
        return bytes(out)


def steering_program(sockets: int, own_address: str) -> bytes:
    """Instructions of the program. `sockets` is the descriptor of the socket map, `own_address` the namespace's IPv4 address.

    To 127.0.0.0/8, ::1 and the own address: as without the program, so an instance can serve itself, and answers to its
    unconnected UDP sockets arrive. Any other TCP: the broker's listener. UDP port 53: the broker's DNS socket. Anything else:
    dropped, which the sender sees at once as "connection refused".
    """
    code = _Assembler()
    code.copy(6, 1)
    code.load(2, _FAMILY)
    code.jump_if(2, socket.AF_INET, "ipv4")
    for index in range(3):
        code.load(2, _LOCAL_IP6 + 4 * index)
        code.jump_unless(2, 0, "leaves")
    code.load(2, _LOCAL_IP6 + 12)
    code.jump_if(2, _word(b"\0\0\0\1"), "stays")
    code.jump("leaves")
    code.label("ipv4")
    code.load(2, _LOCAL_IP4)
    code.jump_if(2, _word(socket.inet_aton(own_address)), "stays")
    code.emit(0x54, 2, value=_word(b"\xff\0\0\0"))  # w2 &= first byte
    code.jump_if(2, _word(b"\x7f\0\0\0"), "stays")
    code.label("leaves")
    code.put(3, TCP_KEY)
    code.load(2, _PROTOCOL)
    code.jump_if(2, socket.IPPROTO_TCP, "steer")
    code.jump_unless(2, socket.IPPROTO_UDP, "drop")
    code.load(2, _LOCAL_PORT)
    code.jump_unless(2, DNS_PORT, "drop")
    code.put(3, DNS_KEY)
    code.label("steer")
    _emit_assignment(code, sockets)
    code.label("stays")
    code.finish(_PASS)
    code.label("drop")
    code.finish(_DROP)
    return code.assembled()


def _emit_assignment(code: _Assembler, sockets: int) -> None:
    """Give the packet to the socket at key r3 of the map; drop it when the broker has closed that socket."""
    code.emit(0x63, 10, 3, -4)  # *(u32 *)(r10 - 4) = r3
    code.emit(0x18, 1, 1, 0, sockets)  # r1 = map (two slots; source 1 marks a map descriptor)
    code.emit(0)
    code.copy(2, 10)
    code.emit(0x07, 2, value=-4)
    code.call(_HELPER_MAP_LOOKUP)
    code.emit(0x15, 0, value=0, to="drop")
    code.copy(7, 0)
    code.copy(1, 6)
    code.copy(2, 7)
    code.put(3, 0)
    code.call(_HELPER_SK_ASSIGN)
    code.copy(8, 0)
    code.copy(1, 7)
    code.call(_HELPER_SK_RELEASE)
    code.jump_unless(8, 0, "drop")


def steer(netns: int, listener: socket.socket, resolver: socket.socket, own_address: str) -> int:
    """Attach the program to the network namespace `netns` (descriptor). The answer is the link's descriptor: closing it detaches.

    `listener` and `resolver` must belong to that namespace. Raises OSError: EPERM without CAP_BPF and CAP_NET_ADMIN in the
    initial user namespace, EINVAL or ENOSYS where the kernel is too old.
    """
    with contextlib.ExitStack() as opened:
        sockets = _bpf(_MAP_CREATE, struct.pack("=IIII", _MAP_TYPE_SOCKMAP, 4, 8, 2))
        opened.callback(os.close, sockets)
        _store(sockets, TCP_KEY, listener)
        _store(sockets, DNS_KEY, resolver)
        program = _load(steering_program(sockets, own_address))
        opened.callback(os.close, program)
        return _bpf(_LINK_CREATE, struct.pack("=IIII", program, netns, _ATTACH_SK_LOOKUP, 0))


def _store(sockets: int, key: int, value: socket.socket) -> None:
    key_buffer = ctypes.c_uint32(key)
    value_buffer = ctypes.c_uint64(value.fileno())
    where = (ctypes.addressof(key_buffer), ctypes.addressof(value_buffer))
    _bpf(_MAP_UPDATE, struct.pack("=IxxxxQQQ", sockets, *where, 0))


def _load(instructions: bytes) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        _PROG_TYPE_SK_LOOKUP, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text),
        0, 0, 0, 0, 0, b"dayfly_egress", 0, _ATTACH_SK_LOOKUP,
    )  # fmt: skip
    return _bpf(_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    if _SYSCALL is None:
        raise OSError(f"no bpf(2) number known for {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(_SYSCALL, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return result
