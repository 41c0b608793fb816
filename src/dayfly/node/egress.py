"""The egress broker: the only way out of an instance that has one. An unprivileged process in the host's network.

The node hands it sockets that live inside instances' network namespaces (sandbox/network.py): every connection an instance
opens arrives at one of them. The broker learns where it was going, asks core/decide/egress.py about that address, connects from
the host's network and splices (egress_flow.py); DNS queries are forwarded, or asked anew for who has a list of hosts (egress_dns.py);
where sockets cannot be steered it speaks the HTTP proxy protocol (egress_proxy.py). It must never connect to an address that the
decision refuses, and reads nothing of what instances send but DNS questions and proxy requests. When it dies, its connections break
and nothing else does.

`run` is called by app.py in a process of its own.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401  # uvloop needs it at the first connection, when this user may not read the interpreter's folder
import errno
import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address

import structlog
import uvloop

from dayfly.core.decide import egress as decide
from dayfly.core.model.egress import reach
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.wire import dns
from dayfly.core.wire import egress as wire
from dayfly.node import egress_dns, egress_proxy
from dayfly.node.egress_flow import Flow, family, reset
from dayfly.node.egress_link import Namespace, NodeLink, affordable_connections, peer, private_door
from dayfly.sandbox import netlink

_BATCH = 32  # accepts or datagrams taken in one go before others get their turn
_log = structlog.get_logger()

Ancillary = list[tuple[int, int, bytes]]


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or the supervisor's end. Raises OSError when the socket cannot be made."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, layout, lifeline, ready))


async def _serve(settings: Settings, layout: Layout, lifeline: int, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stopping, relieved = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, relieved.set)  # a successor listens: stay for the nodes that are connected, and no longer
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_reader(lifeline, stopping.set)  # nobody writes after the start: readable means end-of-file
    async with asyncio.TaskGroup() as tasks:
        broker = Broker(settings, os.stat(layout.run).st_uid, tasks)
        broker.listen(layout.egress_socket)
        ready()
        left = tasks.create_task(_left(broker, relieved, stopping))
        await stopping.wait()
        left.cancel()
        loop.remove_reader(lifeline)
        broker.close()
    if not relieved.is_set():  # else the name is the successor's
        with contextlib.suppress(FileNotFoundError):
            os.unlink(layout.egress_socket)


async def _left(broker: "Broker", relieved: asyncio.Event, stopping: asyncio.Event) -> None:
    """Stop once a successor is there and the last node has gone."""
    await relieved.wait()
    broker.refuse()
    await broker.deserted.wait()
    stopping.set()


class Refused(Exception):
    """The decision said no; the text is its reason."""


class Broker:
    """All namespaces and their connections. Everything runs on one event loop."""

    def __init__(self, settings: Settings, node_uid: int, tasks: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._node_uids = {0, node_uid}
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self.reach = reach(settings)
        self.bytes_per_second = settings.egress_bytes_per_second_max
        self._routes = netlink.Routes()
        self._resolver = egress_dns.Resolver(settings.egress_query_timeout_seconds)
        self._links: set[NodeLink] = set()
        self._parked: set[Namespace] = set()
        self._connections = 0
        self._connections_max = affordable_connections(settings)
        self._queries = 0
        self._door: socket.socket | None = None
        self.deserted = asyncio.Event()  # nobody may connect, and nobody is connected

    def __repr__(self) -> str:
        namespaces = sum(len(link.namespaces) for link in self._links)
        return f"<egress Broker namespaces={namespaces} connections={self._connections} queries={self._queries}>"

    def listen(self, path: str) -> None:
        """Wait for the node at this path; a socket left by a predecessor is replaced."""
        self._door = private_door(path)
        self._loop.add_reader(self._door, self._admit)

    def _admit(self) -> None:
        """A node connects: only root, or the user this platform belongs to."""
        assert self._door
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._door.accept()
            connection.setblocking(False)
            pid, uid = peer(connection)
            if uid in self._node_uids:
                self._links.add(NodeLink(self, connection))
            else:
                _log.warning("egress_peer_refused", pid=pid, uid=uid)
                connection.close()

    def forget(self, link: NodeLink) -> None:
        self._links.discard(link)
        if self._door is None and not self._links:
            self.deserted.set()

    def refuse(self) -> None:
        """Take no further node."""
        if self._door:
            self._loop.remove_reader(self._door)
            self._door.close()
            self._door = None
        if not self._links:
            self.deserted.set()

    def close(self) -> None:
        """End everything; tasks that were cancelled end in their TaskGroup."""
        self.refuse()
        for link in list(self._links):
            link.close()
        self._routes.close()

    def open(self, namespace: Namespace) -> None:
        self._loop.add_reader(namespace.listener, self._accept, namespace)
        if namespace.resolver:
            self._loop.add_reader(namespace.resolver, self._read_queries, namespace, namespace.resolver)

    def shut(self, namespace: Namespace) -> None:
        """Let go of the namespace's sockets, so that the kernel can free it, and break its connections."""
        self._parked.discard(namespace)
        for one in (namespace.listener, namespace.resolver):
            if one:
                self._loop.remove_reader(one)
                one.close()
        for task in namespace.tasks:
            task.cancel()
        if namespace.meter.connections:
            _log.info("egress_ended", **namespace.report()._asdict())

    def _spawn(self, namespace: Namespace, task: asyncio.Task[None]) -> None:
        namespace.tasks.add(task)
        task.add_done_callback(namespace.tasks.discard)

    # Connections

    def _accept(self, namespace: Namespace) -> None:
        for _ in range(_BATCH):
            full = namespace.connections >= self._settings.egress_connections_per_instance_max
            if full or self._connections >= self._connections_max:
                return self._park(namespace)
            try:
                client, _ = namespace.listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    return self._park(namespace)
                continue  # that one connection broke before it was accepted
            client.setblocking(False)
            namespace.connections += 1
            self._connections += 1
            self._spawn(namespace, self._tasks.create_task(self._carry(namespace, client)))
        return None

    def _park(self, namespace: Namespace) -> None:
        """At a limit: leave further connections in the kernel's queue, and look again when one has ended, or in a second."""
        self._loop.remove_reader(namespace.listener)
        self._parked.add(namespace)
        self._loop.call_later(1.0, self._resume, namespace)

    def _resume(self, namespace: Namespace) -> None:
        if namespace in self._parked:
            self._parked.discard(namespace)
            self._loop.add_reader(namespace.listener, self._accept, namespace)

    def _ended(self, namespace: Namespace) -> None:
        namespace.connections -= 1
        self._connections -= 1
        if namespace in self._parked:
            self._resume(namespace)
        elif self._parked:
            self._resume(next(iter(self._parked)))

    async def _carry(self, namespace: Namespace, client: socket.socket) -> None:
        """One connection from its acceptance to its end."""
        try:
            if namespace.is_proxy:
                await self._carry_proxied(namespace, client)
            else:
                await self._carry_steered(namespace, client)
        except Refused:
            namespace.meter.refused += 1
        except OSError:
            pass  # unreachable, timed out, or broken: the instance sees the reset
        except Exception:
            _log.exception("egress_connection_failed")
        finally:
            reset(client)
            self._ended(namespace)

    async def _carry_steered(self, namespace: Namespace, client: socket.socket) -> None:
        host, port = client.getsockname()[:2]
        for_names = (host.removeprefix("::ffff:"), port) == (wire.NAME_SERVER, 53)
        if for_names and namespace.policy.rules is not None:
            await self._carry_names(namespace, client)
            return
        async with asyncio.timeout(self._settings.egress_connect_timeout_seconds):
            if for_names:
                upstream = await self._connect_first(self._resolver.servers())
            else:
                upstream = await self._connect_allowed(namespace, [(host, port)])
        await self._splice(namespace, client, upstream)

    async def _carry_proxied(self, namespace: Namespace, client: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._settings.egress_connect_timeout_seconds):
                request = await egress_proxy.read_request(client)
                upstream = await self._connect_named(namespace, request.host, request.port)
                if request.tunnel:
                    await self._loop.sock_sendall(client, egress_proxy.ESTABLISHED)
        except (egress_proxy.ProxyError, Refused, TimeoutError) as error:
            namespace.meter.refused += isinstance(error, Refused)
            with contextlib.suppress(OSError):
                client.send(egress_proxy.error_answer(_as_proxy_error(error)))
                client.shutdown(socket.SHUT_WR)
            client.close()
            return
        await self._splice(namespace, client, upstream, request.first)

    async def _splice(self, namespace: Namespace, client: socket.socket, upstream: socket.socket, early: bytes = b"") -> None:
        namespace.meter.connections += 1
        try:
            await Flow(namespace.meter, self._settings.egress_idle_timeout_seconds).run(client, upstream, early)
        finally:
            upstream.close()

    async def _connect_named(self, namespace: Namespace, host: str, port: int) -> socket.socket:
        ports = namespace.policy.ports_of(host.lower().rstrip("."))
        named = ports is not None and not ports.isdisjoint((0, port))
        if namespace.policy.rules is not None and not named and not _is_address(host):
            raise Refused("unlisted")  # and nobody is asked about it
        try:
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise egress_proxy.ProxyError(502, f"{host} cannot be resolved.") from error
        try:
            return await self._connect_allowed(namespace, [(str(info[4][0]), port) for info in found], named=named)
        except TimeoutError:
            raise
        except OSError as error:
            raise egress_proxy.ProxyError(502, f"{host} cannot be reached: {os.strerror(error.errno or 0)}.") from error

    async def _connect_allowed(self, namespace: Namespace, addresses: list[tuple[str, int]], *, named: bool = False) -> socket.socket:
        """A connection to the first address that is allowed and answers. Raises Refused when none is allowed, else OSError."""
        allowed, policy, now = [], namespace.policy, self._loop.time()
        refused = "nothing to connect to"
        for host, port in addresses:
            address = decide.plain(ip_address(host))
            pinned = named or namespace.pins.admits(address, port, now)
            reason = decide.refusal(address, port, self._routes.is_own(address.packed), policy, named=pinned)
            if reason:
                refused = reason
            else:
                allowed.append((str(address), port))
        if not allowed:
            raise Refused(refused)
        return await self._connect_first(allowed)

    async def _connect_first(self, addresses: list[tuple[str, int]]) -> socket.socket:
        """A connection to the first of these numeric addresses that answers, whatever they are. Raises OSError."""
        last: OSError = OSError(errno.EHOSTUNREACH, "no address")
        for address in addresses:
            upstream = socket.socket(family(address[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                await self._loop.sock_connect(upstream, address)
            except OSError as error:
                upstream.close()
                last = error
            except BaseException:
                upstream.close()
                raise
            else:
                return upstream
        raise last

    # Names

    def _read_queries(self, namespace: Namespace, resolver: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                query, ancillary, _, sender = resolver.recvmsg(egress_dns.QUERY_BYTES_MAX + 1, 128)
            except OSError:  # BlockingIOError: all read
                return
            busy = namespace.queries >= self._settings.egress_queries_per_instance_max
            if busy or self._queries >= self._settings.egress_queries_max or not egress_dns.is_query(query):
                namespace.meter.refused += 1
                continue  # as a network drops what is too much; clients ask again
            namespace.queries += 1
            self._queries += 1
            self._spawn(namespace, self._tasks.create_task(self._answer(namespace, resolver, query, ancillary, sender)))

    async def _answer(
        self, namespace: Namespace, resolver: socket.socket, query: bytes, ancillary: Ancillary, sender: tuple[object, ...]
    ) -> None:
        try:
            answer = await self._answer_to(namespace, query)
            namespace.meter.sent += len(query)
            namespace.meter.received += len(answer)
            resolver.sendmsg([answer], _from_there(ancillary), 0, sender)
        except OSError:
            pass  # the instance's buffer is full, or it is gone
        except Exception:
            _log.exception("egress_query_failed")
        finally:
            namespace.queries -= 1
            self._queries -= 1

    async def _answer_to(self, namespace: Namespace, query: bytes, *, over_tcp: bool = False) -> bytes:
        """As it came from a name server; where there is a list, only for its names, by a query of our own, and what it says is noted."""
        if namespace.policy.rules is None:
            return await self._resolver.answer(query)
        try:
            asked = dns.question(query)
            ports = namespace.policy.ports_of(asked.name)
        except ValueError:
            ports = None
        if ports is None:
            namespace.meter.refused += 1
            return egress_dns.failure(query, dns.NXDOMAIN)
        answer = await self._resolver.answer_of_our_own(asked, over_tcp=over_tcp)
        try:
            found = dns.addresses(answer, asked) if answer else []
        except ValueError:
            answer, found = b"", []
        for address, ttl in found:
            namespace.pins.note(address, ports, ttl, self._loop.time())
        return query[:2] + answer[2:] if answer else egress_dns.failure(query)

    async def _carry_names(self, namespace: Namespace, client: socket.socket) -> None:
        """Name queries over TCP (RFC 7766), one after the other, of an instance that has a list."""
        while True:
            async with asyncio.timeout(self._settings.egress_idle_timeout_seconds):
                query = await egress_dns.read_message(client, egress_dns.QUERY_BYTES_MAX)
            if not egress_dns.is_query(query):
                raise Refused("not a query")
            answer = await self._answer_to(namespace, query, over_tcp=True)
            namespace.meter.sent += len(query)
            namespace.meter.received += len(answer)
            async with asyncio.timeout(self._settings.egress_idle_timeout_seconds):
                await self._loop.sock_sendall(client, len(answer).to_bytes(2, "big") + answer)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _as_proxy_error(error: Exception) -> egress_proxy.ProxyError:
    if isinstance(error, egress_proxy.ProxyError):
        return error
    if isinstance(error, Refused):
        return egress_proxy.ProxyError(403, f"Egress does not go there: {error}.")
    return egress_proxy.ProxyError(504, "No connection in time.")


def _from_there(ancillary: Ancillary) -> Ancillary:
    """Packet info for an answer that comes from the address the query was sent to (ipv6(7), ip(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return [(level, kind, data[:16] + bytes(4))]  # struct in6_pktinfo: address, interface
        if level == socket.IPPROTO_IP and kind == getattr(socket, "IP_PKTINFO", 8):
            return [(level, kind, bytes(4) + data[8:12] + bytes(4))]  # struct in_pktinfo: interface, source, destination
    return []
