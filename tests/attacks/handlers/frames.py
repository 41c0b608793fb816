"""Speaking the instance's own protocol wrongly: frames to its gateway, its shared socket, its page, its descriptors. In sandboxes only."""

import ctypes
import errno
import mmap
import os
import random
import socket
import struct
import time

ANSWER = struct.Struct("<BBHIIIQ")
READY, FAILED, RESULT, HEAD, CHUNK, END, LOG, RETIRED, MOVED = range(1, 10)
LIBC = ctypes.CDLL(None, use_errno=True)


def channels():
    """(requests, answers, page): found by what they are, as anybody could."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    found[one.type] = int(name)
            elif "progress" in target:
                found["page"] = int(name)
        except OSError:
            continue
    return found[socket.SOCK_SEQPACKET], found[socket.SOCK_STREAM], found["page"]


def own_call():
    """The sequence number of the call that runs now."""
    return struct.unpack("<Q", os.pread(channels()[2], 8, 0))[0]


def frame(kind, seq, body=b"", *, flags=0, status=0, meta=b"", meta_size=None, body_size=None):
    return (
        ANSWER.pack(
            kind, flags, status, len(meta) if meta_size is None else meta_size, len(body) if body_size is None else body_size, 1, seq
        )
        + meta
        + body
    )


def say(data):
    answers = channels()[1]
    while data:
        data = data[os.write(answers, data) :]


FORGED = b'"forged"'
# What a socket may add to messages, how much it holds, how long it waits: name, number, value.
OPTIONS = (
    ("receive", 8, 1), ("send", 7, 1), ("low water", 18, 1 << 30), ("receive time", 20, struct.pack("@ll", 0, 1000)),
    ("send time", 21, struct.pack("@ll", 0, 1)), ("credentials", 16, 1), ("security", 34, 1), ("pidfd", 76, 1), ("no descriptors", 83, 0),
    ("times", 29, 1), ("times in ns", 35, 1), ("times of hardware", 37, 0x1FF), ("peek offset", 42, 7),
    ("linger", 13, struct.pack("@ii", 1, 0)),
)  # fmt: skip
CRAFTED = {
    "garbage": lambda seq: b"\xff" * 4096,
    "zeros": lambda seq: bytes(4096),
    "noise": lambda seq: random.Random(7).randbytes(200_000),
    "unknown kind": lambda seq: frame(99, seq),
    "kind 0": lambda seq: frame(0, seq),
    "meta too long": lambda seq: frame(RESULT, seq, meta_size=(1 << 32) - 1),
    "body too long": lambda seq: frame(RESULT, seq, body_size=(1 << 32) - 1),
    "body a little too long": lambda seq: frame(RESULT, seq, body_size=6_291_557),
    "body that never comes": lambda seq: frame(RESULT, seq, body_size=6_000_000),
    "half a head": lambda seq: frame(RESULT, seq)[:11],
    "head of a control frame": lambda seq: struct.pack("<BxxxIQ", 1, 1 << 20, seq) + b"{}",
    "ready again": lambda seq: frame(READY, 0, meta=b'{"init_us":1,"async":false}'),
    "ready, nonsense": lambda seq: frame(READY, 0, meta=b'{"init_us":-1}'),
    "failed though ready": lambda seq: frame(FAILED, 0, meta=b'{"errorType":"x"}'),
    "chunk of nothing": lambda seq: frame(CHUNK, seq, b"forged"),
    "end of nothing": lambda seq: frame(END, seq),
    "broken end of nothing": lambda seq: frame(END, seq, b"{", flags=1),
    "head twice": lambda seq: frame(HEAD, seq, status=200) * 2 + frame(END, seq) * 2,
    "head, then a result": lambda seq: frame(HEAD, seq, status=200, body=b"forged") + frame(RESULT, seq, FORGED),
    "head with a split header": lambda seq: frame(HEAD, seq, status=200, meta=b"x-a: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    "result with a split header": lambda seq: frame(RESULT, seq, FORGED, status=200, meta=b"x-a: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    "result without an end": lambda seq: frame(RESULT, seq, b"x" * 1000, body_size=1001),
    "moved unasked": lambda seq: frame(MOVED, seq) * 100,
    "moved, and the end": lambda seq: frame(HEAD, seq, b"x" * 100_000, status=200) + frame(MOVED, seq) * 2 + frame(END, seq),
    "moved for others": lambda seq: b"".join(frame(MOVED, seq + offset) for offset in range(1, 100)),
    "a length not kept": lambda seq: frame(HEAD, seq, b"forged", status=200, meta=b"content-length: 999\r\n") + frame(END, seq),
    "lengths that are none": lambda seq: frame(HEAD, seq, b"forged", status=200, meta=b"content-length: -1\r\ncontent-length: x\r\n"),
    "error that is none": lambda seq: frame(RESULT, seq, b"\xff\xfe{", flags=1),
    "status out of range": lambda seq: frame(RESULT, seq, FORGED, status=65535),
    "log of no call": lambda seq: frame(LOG, 0, b"\xff\xfe", flags=255, status=65535),
    "log of a call not made": lambda seq: frame(LOG, seq + 10**6, b"forged"),
    "empty logs": lambda seq: frame(LOG, seq) * 5000,
    "log as long as it may": lambda seq: frame(LOG, seq, b"l" * 6_000_000),
    "retired while it runs": lambda seq: frame(RETIRED, 0),
    "retired many times": lambda seq: frame(RETIRED, 0) * 100,
    "double answer": lambda seq: frame(RESULT, seq, FORGED) * 2,
    "a thousand answers": lambda seq: frame(RESULT, seq, FORGED) * 1000,
    "number 0": lambda seq: frame(RESULT, 0, FORGED) * 100,
    "the largest number": lambda seq: frame(RESULT, (1 << 64) - 1, FORGED),
}


def crafted(event):
    say(CRAFTED[event["what"]](own_call()))
    return "told"


def answer_others(event):
    """An answer for every call around our own but our own: calls of others, calls long over (after their deadline), calls yet to come."""
    seq = own_call()
    say(b"".join(frame(RESULT, seq + offset, FORGED) for offset in range(-event["past"], event["future"]) if offset and seq + offset > 0))
    return ["mine", seq]


def bodies(event):
    """A large answer to our own call over and over, without waiting: what the gateway would have to hold."""
    seq = own_call()
    for _ in range(event["count"]):
        say(frame(RESULT, seq + 1_000_000, b"x" * 6_000_000))
    return "told"


def drip(event):
    """A frame a byte at a time."""
    for byte in frame(LOG, own_call(), b"drip" * 10):
        say(bytes([byte]))
        time.sleep(0.002)
    return "dripped"


def log_frames(event):
    """So many LOG frames as fast as they go."""
    block = frame(LOG, own_call(), b"l" * event.get("size", 40), status=20) * 500
    for _ in range(event["lines"] // 500):
        say(block)
    return event["lines"]


def shut(event):
    """shutdown(2) in every direction, on every socket that is here."""
    for number in channels()[:2]:
        if event["which"] in ("both", {channels()[0]: "requests", channels()[1]: "answers"}[number]):
            with socket.socket(fileno=os.dup(number)) as one:
                one.shutdown({"read": socket.SHUT_RD, "write": socket.SHUT_WR, "all": socket.SHUT_RDWR}[event["how"]])
    return "shut"


def close(event):
    what = event["which"]
    requests, answers, page = channels()
    if what == "everything":
        os.closerange(0, 1024)
    elif what == "replaced":
        null = os.open("/dev/null", os.O_RDWR)
        for number in (requests, answers, page):
            os.dup2(null, number)
    elif what == "crossed":
        os.dup2(answers, 100), os.dup2(requests, answers), os.dup2(100, requests)
    elif what == "output":
        os.close(1), os.close(2)
    else:
        os.close({"requests": requests, "answers": answers, "page": page}[what])
    return "closed"


def options(event):
    """Options of the sockets that are not ours alone; what worked."""
    said = {}
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)
    drop_all = struct.pack("@HP", 1, ctypes.addressof(instruction))
    for number in channels()[:2]:
        with socket.socket(fileno=os.dup(number)) as one:
            for label, option, value in (("filter", 26, drop_all), *OPTIONS):
                try:
                    one.setsockopt(socket.SOL_SOCKET, option, value)
                    said[f"{label} {number}"] = "worked"
                except OSError as error:
                    said[f"{label} {number}"] = errno.errorcode[error.errno]
            one.setblocking(False)
            for call in (lambda: one.connect(b"\0x"), lambda: one.listen(1), lambda: one.bind(b"\0mine")):
                try:
                    call()
                except OSError:
                    continue
    return said


def wrong_way(event):
    """Messages, with descriptors in them, back into the socket that calls come from, until it is full; and into the other."""
    null = os.open("/dev/null", os.O_RDONLY)
    sent = 0
    with socket.socket(fileno=os.dup(channels()[0])) as requests:
        requests.setblocking(False)
        try:
            while sent < 100_000:
                socket.send_fds(requests, [b"x" * 100], [null] * 100)
                sent += 1
        except OSError:
            pass
        requests.setblocking(True)
    with socket.socket(fileno=os.dup(channels()[1])) as answers:
        for _ in range(100):
            socket.send_fds(answers, [frame(LOG, own_call(), b"with descriptors")], [null] * 200)
    os.close(null)
    return sent


def steal(event):
    """Take calls out of the shared socket and never answer them."""
    stop = time.monotonic() + event["seconds"]
    with socket.socket(fileno=os.dup(channels()[0])) as requests:
        requests.settimeout(0.05)
        taken = 0
        while time.monotonic() < stop:
            try:
                taken += bool(requests.recv(65536))
            except OSError:
                continue
        requests.settimeout(None)
    return taken


def page(event):
    """Claim in the shared page to run every call there is, shrink it, grow it."""
    descriptor = channels()[2]
    said = {}
    for size in (0, 1, 1 << 20):
        try:
            os.ftruncate(descriptor, size)
            said[str(size)] = "worked"
        except OSError as error:
            said[str(size)] = errno.errorcode[error.errno]
    seq = own_call()
    with mmap.mmap(descriptor, 4096) as view:
        for slot in range(256):
            view[16 * slot : 16 * slot + 16] = struct.pack("<QQ", event["claim"] or seq + slot - 100, 1)
    if event["then"] == "die":
        os._exit(9)
    return said


def length(event):
    """A call with a body too large for a message."""
    return len(event["text"])
