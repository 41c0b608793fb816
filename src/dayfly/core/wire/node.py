"""Messages to and from the node, the one process that keeps root: few, fixed, checked, and nothing in them that a user wrote.

Transport: SOCK_SEQPACKET at RUN/node.sock, one JSON message a packet, descriptors beside it (SCM_RIGHTS). Whatever a user wrote
(environment, handler name, secrets' values) goes from the gateway straight to the instance (BOOT frame, secrets memfd) or lies
in read-only folders named by digest.
"""

from typing import Annotated, Literal

import msgspec

from dayfly.core.model.egress import RULE, RULES_MAX, Way

InstanceId = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,40}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Runtime = Annotated[str, msgspec.Meta(pattern=r"\A(python3\.[0-9]{1,2}|exec)\Z")]  # exec: the program /var/task/bootstrap, see EXEC
TenantName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")]

Rules = Annotated[tuple[Annotated[str, msgspec.Meta(pattern=RULE)], ...], msgspec.Meta(max_length=RULES_MAX)]

# An instance of runtime "exec" is whatever program the function brings at /var/task/bootstrap: a binary, or a script whose first line names
# an interpreter that the sandbox shows (#!/usr/bin/env node). It gets the walls of any instance and the same descriptors, at 3, 4 and 5,
# and speaks runtime/frames.py itself. (What speaks it for programs that do not is the business of the contracts.)
EXEC = "exec"

MESSAGE_BYTES_MAX = 32 * 1024
WEIGHTS_MAX = 64  # in one message


class Start(msgspec.Struct, frozen=True, tag="start", forbid_unknown_fields=True):
    """Fork an instance into a sandbox. Descriptors, in this order: requests, answers, progress, output (write end of a pipe for
    fds 1 and 2), and, when `has_secrets`, a sealed memfd of secrets (see SECRETS in this file)."""

    instance: InstanceId
    tenant: TenantName  # the namespace: it has zygotes of its own
    runtime: Runtime
    code: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]  # "" for role "packages", and only there
    layer: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]  # "" = no dependencies
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=65536)]
    tmp_mb: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    egress: Way
    egress_rules: Rules = ()  # of "list"; checked for their letters only: who reads them is the egress broker
    cpu_millicores: Annotated[int, msgspec.Meta(ge=0, le=1_024_000)] = 0  # a ceiling of processor time; 0: none
    has_secrets: bool = False
    # template: run init, serve nothing, fork instances when asked. packages: the same without code, which its children get when they are
    # given away; its init is to import modules of the layer.
    role: Literal["instance", "template", "packages"] = "instance"
    parent: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{0,40}\Z")] = ""  # the template to come from; if it is gone, like without
    apart: bool = False  # calls of others need processors: keep to those of starts (core/decide/apart.py)

    def __post_init__(self) -> None:
        is_packages = self.role == "packages"
        if is_packages == bool(self.code):
            raise ValueError("code and role do not go together")
        if is_packages and (not self.layer or self.has_secrets or self.parent):
            raise ValueError("a template of packages has a layer, and neither secrets nor a parent")


class Kill(msgspec.Struct, frozen=True, tag="kill", forbid_unknown_fields=True):
    """End an instance now (SIGKILL to everything in its sandbox). Unknown ids are ignored: it may just have ended."""

    instance: InstanceId


class Weigh(msgspec.Struct, frozen=True, tag="weigh", forbid_unknown_fields=True):
    """From now on these instances weigh so many thousandths of what follows from their memory, where processor time is short. Unknown ids
    are ignored. Nobody waits for it."""

    weights: Annotated[dict[InstanceId, Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]], msgspec.Meta(max_length=WEIGHTS_MAX)]


class Build(msgspec.Struct, frozen=True, tag="build", forbid_unknown_fields=True):
    """Install the requirements file DATA/builds/LAYER/requirements.txt into DATA/builds/LAYER/out with uv, in a sandbox that has
    network. One descriptor: write end of a pipe that gets the installer's output. Control moves `out` into place afterwards."""

    layer: Digest
    runtime: Runtime
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Ask(msgspec.Struct, frozen=True, tag="ask", forbid_unknown_fields=True):
    """Ask for `Facts`."""


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """An instance is gone and so is everything it left behind. Sent once for every `Start` that was accepted."""

    instance: InstanceId
    reason: Literal["exit", "signal", "oom", "refused"]  # refused: it never started; `detail` says why
    code: int = 0  # exit status or signal number
    detail: str = ""
    refusal: str = ""  # a code of core/model/errors.py: why it was refused (empty: start_failed), or that its end was not its own doing
    cpu_us: int = 0
    memory_peak_bytes: int = 0


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The instance was forked. `walls` hold for it; `missing` could not be had on this machine."""

    instance: InstanceId
    pid: int
    walls: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Built(msgspec.Struct, frozen=True, tag="built"):
    layer: Digest
    ok: bool
    detail: str = ""


class Facts(msgspec.Struct, frozen=True, tag="facts"):
    """What this machine offers: interpreters found, and each isolation feature with True or the reason it is missing."""

    runtimes: dict[str, str]  # "python3.11" → path
    features: dict[str, bool | str]
    instances: int = 0


ToNode = Start | Kill | Weigh | Build | Ask
FromNode = Exited | Accepted | Built | Facts

# Secrets memfd: repeated  name length (1 byte) · value length (4 bytes, big-endian) · name · value.  Names: core/model/names.py.
SECRET_BYTES_MAX = 64 * 1024

_encoder = msgspec.json.Encoder()
_to_node: msgspec.json.Decoder[ToNode] = msgspec.json.Decoder(ToNode)
_from_node: msgspec.json.Decoder[FromNode] = msgspec.json.Decoder(FromNode)


def encode(message: ToNode | FromNode) -> bytes:
    return _encoder.encode(message)


def decode_to_node(packet: bytes) -> ToNode:
    """Raises msgspec.ValidationError for anything but a well-formed message."""
    return _to_node.decode(packet)


def decode_from_node(packet: bytes) -> FromNode:
    return _from_node.decode(packet)


def pack_secrets(values: dict[str, bytes]) -> bytes:
    """The secrets memfd's contents."""
    parts = []
    for name, value in sorted(values.items()):
        raw = name.encode("ascii")
        parts.append(bytes([len(raw)]) + len(value).to_bytes(4, "big") + raw + value)
    return b"".join(parts)
