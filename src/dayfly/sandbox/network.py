"""Network namespaces for instances: made ahead, handed out one each, used again only as sandbox/again.py allows.

`egress="none"` is a namespace with nothing but its own loopback. `egress="internet"` looks to the instance like the open
internet, but no packet can leave it: every address is delivered to the namespace itself (AnyIP), and a BPF program
(sandbox/bpf.py) steers connections to two sockets that the egress broker (node/egress.py) serves, once `admit` has handed them to it
together with what the instance may reach: until then connections wait. No veth, no NAT, nothing changes on the host. Where BPF is
refused (user namespaces), the broker is an HTTP proxy at 127.0.0.1:3128 instead.
docs/decisions/0011-egress.md has the reasons and the measurements.

Called by the node, which is single-threaded and is root or root of its user namespace. Must never block for longer than
making one namespace takes, and never leave the calling thread in a foreign namespace.
"""

import collections
import os
import socket
from dataclasses import dataclass

from dayfly.core.wire import egress as wire
from dayfly.core.wire.egress import NAME_SERVER, PROXY_PORT, Traffic
from dayfly.sandbox import netns
from dayfly.sandbox.again import Again

RESOLV_CONF = f"nameserver {NAME_SERVER}\noptions timeout:5 attempts:2\n"

_HAND_OVER_MAX = 16  # namespaces handed to the broker in one refill(): keeps each piece of work short
_REPORTS_MAX = 10_000  # traffic reports kept until somebody fetches them; the oldest go first
_HTTP_PROXY = f"http://127.0.0.1:{PROXY_PORT}"


class EgressUnavailable(OSError):
    """`egress="internet"` cannot be had on this machine; the text says why."""


@dataclass
class _Namespace:
    """One namespace that the pool made. `sockets` go to the broker (steered: listener, DNS; proxy: listener; none: empty)."""

    descriptor: int
    sockets: tuple[int, ...] = ()
    link: int = -1  # the BPF link; closing it detaches the steering
    admitted: bool = False  # the broker knows it

    def key(self) -> int:
        return os.fstat(self.descriptor).st_ino

    def close(self) -> None:
        for descriptor in (self.descriptor, *self.sockets, self.link):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor, self.sockets, self.link = -1, (), -1


class Pool:
    """Ready-made network namespaces of both kinds.

    `egress_socket_path` is the broker's socket (None: no internet on this pool); it need not exist yet. `ready` is how many of
    each kind `refill` keeps waiting. Namespaces with internet are made ahead only once somebody has taken one.
    """

    def __init__(self, egress_socket_path: str | None, ready: int = 4) -> None:
        self._ready = ready
        self._waiting: dict[str, list[_Namespace]] = {"none": [], "internet": []}
        self._live: dict[int, _Namespace] = {}  # handed out with internet, until release()
        self._wanted = {"none": ready, "internet": 0}
        self._broker = _Broker(egress_socket_path) if egress_socket_path else None
        self._home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._inline = netns.can_return_to(self._home)
        self._steered = True
        self._again = Again(self._home) if self._inline else None
        self._features = self._probed()

    def __repr__(self) -> str:
        counts = {kind: len(waiting) for kind, waiting in self._waiting.items()}
        return f"<netns Pool ready={counts} live={len(self._live)} broker={self._broker}>"

    def available(self) -> dict[str, bool | str]:
        """Each wall with True, or the reason it is missing: `netns`, `egress_internet`, and `egress_steering` (any TCP client
        works unchanged; without it only clients that honour HTTP_PROXY get out)."""
        return dict(self._features)

    def take(self, egress: str, tenant: str | None = None) -> int:
        """A namespace of the caller's own, as a descriptor that the caller closes once its process has entered.

        For "internet", `admit` opens the way out. `release(key(descriptor))` must follow when the instance has ended or could not be
        started. `tenant`: whose it will be, "" for nobody's yet; None: a new one, whatever there is.
        Raises EgressUnavailable, or OSError when the kernel refuses to make one.
        """
        if egress == "internet":
            if self._features["egress_internet"] is not True:
                raise EgressUnavailable(str(self._features["egress_internet"]))
            self._wanted["internet"] = self._ready
        if egress == "none" and tenant is not None and self._again and (descriptor := self._again.take(tenant)) >= 0:
            self._again.lend(descriptor)
            return descriptor
        waiting = self._waiting[egress]
        namespace = waiting.pop() if waiting else self._make(egress)
        descriptor = namespace.descriptor
        if egress == "internet":
            self._live[namespace.key()] = namespace
            namespace.descriptor = -1
        elif self._again:
            self._again.lend(descriptor)
        return descriptor

    def furnish(self, descriptor: int, egress: str) -> int:
        """Make a namespace that a template's child made for itself what one from here would be. Returns the key to `release` once the
        instance has ended, 0 for none. Raises OSError, or EgressUnavailable as `take` does."""
        if not self._inline:
            raise EgressUnavailable("network namespaces of other makers cannot be furnished in a user namespace")
        kind = "none" if egress == "none" else "steered" if self._steered else "proxy"
        ipv6 = kind == "steered" and netns.has_global_ipv6()
        namespace = self._namespace(kind, netns.furnished_there(self._home, descriptor, kind, ipv6))
        key = namespace.key()
        os.close(namespace.descriptor)
        namespace.descriptor = -1
        if egress == "none":
            return 0
        self._live[key] = namespace
        return key

    @staticmethod
    def key(descriptor: int) -> int:
        """What `release` wants: the namespace's inode number. Ask before closing the descriptor."""
        return os.fstat(descriptor).st_ino

    def admit(self, key: int, egress: str, rules: tuple[str, ...] = ()) -> None:
        """Whose namespace this is, is known now: hand it to the broker with its policy ("internet", "all", or "list" and its rules)."""
        namespace = self._live.get(key)
        if namespace and self._broker and not namespace.admitted:
            namespace.admitted = True
            self._broker.open_namespace(key, namespace.sockets, egress, rules)

    def release(self, key: int, tenant: str | None = None) -> None:
        """Every process in this namespace is gone: drop what kept it alive, or keep it for this tenant. Unknown keys are ignored."""
        if self._again:
            self._again.release(key, tenant)
        namespace = self._live.pop(key, None)
        if namespace and self._broker:
            if namespace.admitted:
                self._broker.close_namespace(key)
            namespace.close()

    def refill(self) -> bool:
        """One short piece of work: make one namespace, or hand some to the broker. True: call again soon.

        Call it off the request path after each `take`, and about once a second otherwise: it is also what notices that the
        broker was restarted. Raises OSError when a namespace cannot be made.
        """
        if self._again:
            self._again.expire()
        if self._broker and self._broker.pump():
            return True
        for kind, wanted in self._wanted.items():
            if len(self._waiting[kind]) < wanted and self._features[_FEATURE[kind]] is True:
                self._waiting[kind].append(self._make(kind))
                return any(len(self._waiting[k]) < w for k, w in self._wanted.items())
        return False

    def traffic(self) -> list[Traffic]:
        """Reports of released namespaces that have arrived since the last call, in the order of the releases.

        The kernel uses inode numbers again, so two of them may have the same key: the earlier is that of the earlier release.
        """
        return self._broker.fetched_reports() if self._broker else []

    def proxy_environment(self) -> dict[str, str]:
        """Variables that an instance with internet needs here; empty where connections are steered."""
        if self._steered or self._features["egress_internet"] is not True:
            return {}
        names = {"HTTP_PROXY": _HTTP_PROXY, "HTTPS_PROXY": _HTTP_PROXY, "NO_PROXY": "localhost,127.0.0.1,::1"}
        return names | {name.lower(): value for name, value in names.items()}

    def close(self) -> None:
        """Let go of everything, also of namespaces still in use: their instances lose the internet."""
        for namespace in [*self._live.values(), *self._waiting["none"], *self._waiting["internet"]]:
            namespace.close()
        self._live.clear()
        for waiting in self._waiting.values():
            waiting.clear()
        if self._again:
            self._again.close()
        if self._broker:
            self._broker.close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    def _probed(self) -> dict[str, bool | str]:
        """Try it: the only honest way to know. What succeeds stays in the pool."""
        features: dict[str, bool | str] = {"netns": True, "egress_internet": True, "egress_steering": True}
        try:
            self._waiting["none"].append(self._make("none"))
        except OSError as error:
            return dict.fromkeys(features, f"no network namespace: {error}")
        if not self._broker:
            return features | dict.fromkeys(("egress_internet", "egress_steering"), "no egress broker is configured")
        try:
            self._waiting["internet"].append(self._make("internet"))
        except OSError as error:
            features["egress_steering"] = f"no socket steering: {error}"
            self._steered = False
            try:
                self._waiting["internet"].append(self._make("internet"))
            except OSError as proxy_error:
                features["egress_internet"] = f"no egress sockets: {proxy_error}"
        return features

    def _make(self, egress: str) -> _Namespace:
        kind = "none" if egress == "none" else "steered" if self._steered else "proxy"
        ipv6 = kind == "steered" and netns.has_global_ipv6()
        return self._namespace(kind, netns.made_here(self._home, kind, ipv6) if self._inline else netns.made_in_child(kind, ipv6))

    def _namespace(self, kind: str, descriptors: list[int]) -> _Namespace:
        if kind == "steered":
            return _Namespace(descriptors[0], tuple(descriptors[1:3]), descriptors[3])
        return _Namespace(descriptors[0], tuple(descriptors[1:]))


_FEATURE = {"none": "netns", "internet": "egress_internet"}
_OPEN_KIND = {1: wire.OPEN_PROXY, 2: wire.OPEN_STEERED}  # by number of sockets


class _Broker:
    """The pool's connection to the egress broker: delivers namespaces, again after the broker was restarted. Never blocks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: socket.socket | None = None
        self._open: dict[int, tuple[tuple[int, ...], bytes]] = {}  # sockets, and the packet that goes with them
        self._unsent: collections.deque[tuple[bool, int]] = collections.deque()  # (open or close, key) in the order of events
        self._reports: collections.deque[Traffic] = collections.deque(maxlen=_REPORTS_MAX)

    def __repr__(self) -> str:
        state = "connected" if self._connection else "away"
        return f"<{state} open={len(self._open)} unsent={len(self._unsent)}>"

    def open_namespace(self, key: int, sockets: tuple[int, ...], egress: str, rules: tuple[str, ...]) -> None:
        """`sockets` stay the caller's and must stay open until `close_namespace`."""
        self._open[key] = (sockets, wire.request(_OPEN_KIND[len(sockets)], key, egress, rules))
        self._unsent.append((True, key))
        self._deliver(_HAND_OVER_MAX)

    def close_namespace(self, key: int) -> None:
        self._open.pop(key, None)
        self._unsent.append((False, key))
        self._deliver(1)

    def pump(self) -> bool:
        """Notice reports and a restarted broker, and send some of what is unsent. True when more can be sent now."""
        self._receive()
        return self._deliver(_HAND_OVER_MAX)

    def fetched_reports(self) -> list[Traffic]:
        self._receive()
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def close(self) -> None:
        self._open.clear()
        self._disconnect()

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return False
        self._connection = connection
        self._unsent = collections.deque((True, key) for key in self._open)  # a new connection knows nothing
        return True

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _deliver(self, at_most: int) -> bool:
        """True when there is more and the broker takes it."""
        if self._connection is None and not self._connect():
            return False
        while self._unsent and at_most:
            is_open, key = self._unsent[0]
            sockets, packet = self._open.get(key, ((), b"")) if is_open else ((), wire.request(wire.CLOSE, key))
            if packet and not self._send(packet, sockets):  # empty: closed before it was sent
                return False
            self._unsent.popleft()
            at_most -= 1
        return bool(self._unsent)

    def _send(self, packet: bytes, descriptors: tuple[int, ...]) -> bool:
        """False: not now (the broker is slow), or the broker is gone."""
        if self._connection is None:
            return False
        try:
            socket.send_fds(self._connection, [packet], list(descriptors))
        except BlockingIOError:
            return False
        except OSError:
            self._disconnect()
            return False
        return True

    def _receive(self) -> None:
        while self._connection:
            try:
                packet = self._connection.recv(wire.PACKET_BYTES_MAX)
                self._reports.append(wire.parsed_traffic(packet))
            except BlockingIOError:
                return
            except (OSError, ValueError):  # an empty packet is end-of-file, and no report either
                self._disconnect()
