"""Ways out: addresses, other families of sockets, options that would forge or bypass. Runs in sandboxes only."""

import ctypes
import errno
import os
import socket
import struct
import threading

kept = []


def name_of(error):
    return f"{type(error).__name__} {getattr(error, 'errno', '')}"


def _attempt(host, port, command):
    try:
        with socket.create_connection((host, port), timeout=4) as connection:
            connection.sendall(command.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
                if len(answer) > 1000:
                    break
            return {"answer": answer.decode("latin-1")[:300]} if answer else "nothing"
    except OSError as error:
        return name_of(error)


def reach(event):
    """Connect to every (host, port), say a word and tell what came; all at once, because some would only time out."""
    said = {}

    def one(host, port):
        said[f"{host} {port}"] = _attempt(host, port, event["command"])

    threads = [threading.Thread(target=one, args=(host, port)) for host, port in event["targets"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def datagrams(event):
    """UDP to every (host, port); what came back."""
    said = {}
    for host, port in event["targets"]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0.3)
            try:
                sender.connect((host, port))
                sender.send(b"hello")
                said[f"{host} {port}"] = {"answer": sender.recv(100).decode("latin-1")}
            except OSError as error:
                said[f"{host} {port}"] = name_of(error)
    return said


def serve(event):
    """Listen on all of our own addresses, and keep doing so."""
    server = socket.create_server(("0.0.0.0", event["port"]))
    kept.append(server)

    def answer():
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(b"somebody else's loopback")

    threading.Thread(target=answer, daemon=True).start()
    return "serving"


FAMILIES = {
    "raw": (socket.AF_INET, socket.SOCK_RAW, 1),
    "raw6": (socket.AF_INET6, socket.SOCK_RAW, 58),
    "raw ip": (socket.AF_INET, socket.SOCK_RAW, 255),
    "packet": (17, socket.SOCK_RAW, 0x0300),
    "packet dgram": (17, socket.SOCK_DGRAM, 0x0300),
    "vsock": (40, socket.SOCK_STREAM, 0),
    "vsock dgram": (40, socket.SOCK_DGRAM, 0),
    **{f"netlink {protocol}": (16, socket.SOCK_RAW, protocol) for protocol in (0, 4, 9, 12, 15, 16)},
    "alg": (38, socket.SOCK_SEQPACKET, 0),
    "bluetooth": (31, socket.SOCK_RAW, 1),
    "can": (29, socket.SOCK_RAW, 1),
    "xdp": (44, socket.SOCK_RAW, 0),
    "key": (15, socket.SOCK_RAW, 2),
    "tipc": (30, socket.SOCK_RDM, 0),
    "rds": (21, socket.SOCK_SEQPACKET, 0),
    "kcm": (41, socket.SOCK_DGRAM, 0),
    "smc": (43, socket.SOCK_STREAM, 0),
    "qrtr": (42, socket.SOCK_DGRAM, 0),
    "nfc": (39, socket.SOCK_RAW, 1),
    "pppox": (24, socket.SOCK_STREAM, 0),
}


def families(event):
    """Sockets of every other kind."""
    said = {}
    for label, (family, kind, protocol) in FAMILIES.items():
        try:
            socket.socket(family, kind, protocol).close()
            said[label] = "opened"
        except OSError as error:
            said[label] = errno.errorcode.get(error.errno, str(error.errno))
    return said


INSTRUCTION = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)  # BPF: return 0, keep nothing of any packet
DROP_ALL = struct.pack("@HP", 1, ctypes.addressof(INSTRUCTION))
OPTIONS = {
    "transparent": (socket.SOL_IP, 19, 1),
    "mark": (socket.SOL_SOCKET, 36, 1),
    "force send buffer": (socket.SOL_SOCKET, 32, 1 << 30),
    "force receive buffer": (socket.SOL_SOCKET, 33, 1 << 30),
    "debug": (socket.SOL_SOCKET, 1, 1),
    "priority": (socket.SOL_SOCKET, 12, 7),
    "header included": (socket.SOL_IP, 3, 1),
    "filter": (socket.SOL_SOCKET, 26, DROP_ALL),
    "bpf": (socket.SOL_SOCKET, 50, 3),
    "reuseport filter": (socket.SOL_SOCKET, 51, DROP_ALL),
    "reuseport bpf": (socket.SOL_SOCKET, 52, 3),
}


def options(event):
    """Options that need privileges, or hand programs to the kernel."""
    said = {}
    for label, (level, option, value) in OPTIONS.items():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            try:
                one.setsockopt(level, option, value)
                said[label] = "worked"
            except OSError as error:
                said[label] = errno.errorcode.get(error.errno, str(error.errno))
    return said


def interfaces(event):
    return [name for _, name in socket.if_nameindex()] if os.path.isdir("/sys") else []
