"""Messages between a gateway and an instance: the whole protocol on one page.

An instance holds three descriptors, all made by the gateway and carried to it by the node:

* ``requests``: the receiving end of a SOCK_SEQPACKET pair that *all instances of one version share*. One message is one
  call. Whoever is free takes the next (pull): work-conserving, no head-of-line blocking. End of file means "finish and
  leave"; a RETIRE message means "one of you, leave", and a call flagged ``LAST`` "whoever takes me, leave after it".
* ``answers``: this instance's own SOCK_STREAM. First the gateway's BOOT frame waits in it; then the instance writes
  READY or FAILED, LOG, and the answers of calls. The gateway writes CANCEL there.
* ``progress``: one shared page of slots, written *before* user code runs, so that a gateway can tell without a system
  call which calls a lost instance had started ("may have run") and which instance a deadline must kill.

A call's body larger than ``INLINE_BYTES_MAX`` rides as a sealed memfd attached to its message (flag ``BODY_IN_FD``). What does not
stay small goes through a socket of its own, in both directions: a body that is still on its way (``BODY_IN_STREAM``), and a streamed
answer once the gateway has sent ``MOVE``. Bytes are copied once into the kernel and once out of it there, and whoever is slow is slow
alone.

This file travels into the sandbox, so it uses ``struct`` and nothing else. The gateway imports it too: one codec.
All integers are little-endian; times are CLOCK_MONOTONIC nanoseconds, which one machine's processes share.
"""

from struct import Struct

# One request message: kind, flags, length of the call id, length of meta, sequence number, deadline.
# Then the call id (ASCII), meta, body. What meta holds depends on the kind.
REQUEST = Struct("<BBHIQQ")
DIRECT = 1  # meta: client context (JSON text, may be empty); body: the event as JSON text
HTTP = 2  # meta: head lines, see below; body: the request's body as it came
RETIRE = 3  # no meta, no body: whoever takes this message sends RETIRED and leaves

# Request flags.
BODY_IN_FD = 1  # the body is a sealed memfd attached to this message (SCM_RIGHTS), positioned anywhere
BODY_IN_STREAM = 2  # the body comes through the attached SOCK_STREAM: whole at its end of file, broken when reading it says ECONNRESET
LAST = 4  # whoever takes this call leaves when it is answered, and takes no other: its version keeps nobody

# HTTP head lines, joined by b"\n" (header values never contain it):
#   0: METHOD   1: raw path below the function, never empty, e.g. /a%20b   2: raw query string without '?', may be empty
#   3: peer address   4: scheme   5…: "name: value", names in lower case, repeated headers repeated, hop-by-hop removed.
#   x-forwarded-… are there only from a proxy that is believed; otherwise they follow from lines 3 and 4 and the host.
#   A call by a function's own route has one more such line, ROUTE_LINE and routeKey (UTF-8): no header's name can begin with a colon.
ROUTE_LINE = b":route: "
#   For a web application there is one more before it, ROOT_LINE and what stands before the path in the address, e.g. /function/hello.
ROOT_LINE = b":root: "
SOCKET = 4  # an event of a WebSocket. meta: the head lines of the request that opened it, then SOCKET_LINE and
#   event (CONNECT, MESSAGE, DISCONNECT), form (text, binary or -), connection id, when it was opened (ms since 1970), number of the event,
#   and for DISCONNECT code and reason; blanks between them. body: the message.
SOCKET_LINE = b":socket: "
WEBSOCKET = 5  # a WebSocket for an ASGI application. meta: as HTTP's. HEAD with status 101 accepts it, and its block may choose a
#   subprotocol; any other answer denies it. From then to END messages go both ways through the SOCK_STREAM beside it (BODY_IN_STREAM).
MESSAGE = Struct("<BI")  # one of them: kind, length; then so many bytes
TEXT, BINARY = 1, 2
CLOSE = 3  # body: CLOSE_CODE and the reason (UTF-8). From the gateway: it is over. From the instance: close it
CLOSE_CODE = Struct("<H")

# One answer frame: kind, flags, status, length of meta, length of body, execution time in microseconds, sequence number.
ANSWER = Struct("<BBHIIIQ")
READY = (
    1  # meta: JSON {"init_us", "init_cpu_us", "async": whether the handler is, "origin"}; sent once, after the user's module was imported
)
FAILED = 2  # meta: JSON {"errorType", "errorMessage", "stackTrace"}; the instance exits after it
RESULT = 3  # a whole answer. HTTP: status, meta = header block, body. DIRECT: body = JSON text
HEAD = 4  # a streamed answer begins (of both kinds of call): status and header block; body is the first chunk, may be empty. A
#   content-length in this block (a web application's) is a promise: a stream that comes out otherwise counts as broken.
CHUNK = 5  # more of a streamed answer
END = 6  # a streamed answer is complete, or was cancelled; with flag ERROR the stream broke and body holds the error JSON
LOG = 7  # status = level (logging's numbers), flags = stream, seq = the call or 0 outside of calls, body = UTF-8 text, one line or a few
RETIRED = 8  # the instance leaves on its own accord; nothing follows
MOVED = 9  # what follows of this streamed answer comes through the socket that MOVE brought, as plain bytes; END still says how it ended

# Answer flags for RESULT and END.
ERROR = 1  # the function failed; body is {"errorType","errorMessage","requestId","stackTrace"}
EXITING = 2  # the instance ends after this answer (sys.exit in user code): do not give it another call

# LOG flags: which stream the text came from.
STDOUT, STDERR, LOGGING = 0, 1, 2

# Gateway → instance on the answers socket. BOOT is first and only once; CANCEL and MOVE may follow for streamed answers.
CONTROL = Struct("<BxxxIQ")  # kind, length of body, sequence number
BOOT = 1  # body: JSON, see runtime/agent.py (`Boot`)
CANCEL = 2  # the caller of this sequence number has left: stop its stream
MOVE = 3  # with a SOCK_STREAM attached: this stream may go on there (MOVED). Writing to it fails once the caller has left

# Header block of an answer: "name: value\r\n" lines, names in lower case, no content-length, no hop-by-hop headers.

SLOT = Struct("<QQ")  # progress slot: sequence number (0 = free), start of the call
PROGRESS_BYTES = 4096
SLOTS_MAX = PROGRESS_BYTES // SLOT.size - 1  # 255
LATEST = SLOTS_MAX  # the last slot: the call begun last, left there when it is over, to tell whose the output in the pipe is

INLINE_BYTES_MAX = 64 * 1024  # a larger request body travels as a memfd
MESSAGE_BYTES_MAX = INLINE_BYTES_MAX + 128 * 1024  # what a receiver must be ready to take: head + inline body
CHUNK_BYTES_MAX = 64 * 1024
LOG_LINE_BYTES_MAX = 16 * 1024
RESULT_BYTES_MAX = 6_291_556  # 6 MiB + 100 bytes, as AWS Lambda's published limit
META_BYTES_MAX = 64 * 1024
