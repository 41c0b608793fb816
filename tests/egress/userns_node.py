"""A node without root: becomes an ordinary user, then root of a user namespace, makes a pool there, and runs requests from
inside one of its namespaces. `python userns_node.py EGRESS_SOCKET`; prints one JSON object."""

import http.client
import json
import os
import socket
import sys
import urllib.error
import urllib.request

from dayfly.sandbox import network, syscalls
from tests.egress.world import PLATFORM_UID, Instance, attempt

RUBBISH = (
    "rubbish\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET ftp://example.test/ HTTP/1.1\r\n\r\n",
    "GET http://a/" + "x" * 40_000,
)


def become_root_of_a_user_namespace() -> None:
    os.setgroups([])
    os.setresgid(PLATFORM_UID, PLATFORM_UID, PLATFORM_UID)
    os.setresuid(PLATFORM_UID, PLATFORM_UID, PLATFORM_UID)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1, 0, 0)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, line in (("setgroups", "deny"), ("gid_map", f"0 {PLATFORM_UID} 1"), ("uid_map", f"0 {PLATFORM_UID} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


class RootlessInstance(Instance):
    """There is only one uid here."""

    def become_nobody(self) -> None:
        pass


def fetch(url: str) -> str:
    """Through the proxy that the environment names."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return type(error).__name__


def say(data: str) -> str:
    """Raw bytes to the proxy, and all that comes back."""
    with socket.create_connection(("127.0.0.1", 3128), 10) as proxy:
        proxy.sendall(data.encode())
        answer = b""
        while part := proxy.recv(65536):
            answer += part
        return answer.decode()


def tunnel(host: str, port: int) -> str:
    """CONNECT, then the toy service's WHO."""
    client = http.client.HTTPConnection("127.0.0.1", 3128, timeout=10)
    client.set_tunnel(host, port)
    try:
        client.connect()
    except OSError as error:
        return str(error)
    client.sock.sendall(b"WHO\n")
    answer = client.sock.recv(4096).decode()
    client.close()
    return answer


def main(socket_path: str) -> None:
    become_root_of_a_user_namespace()
    pool = network.Pool(socket_path, ready=1)
    results: dict[str, object] = {"available": pool.available(), "environment": pool.proxy_environment()}
    while pool.refill():
        pass
    descriptor = pool.take("internet")
    pool.admit(pool.key(descriptor), "internet")
    instance = RootlessInstance(descriptor)
    os.environ.update(pool.proxy_environment())
    for url in ("http://example.test/path?x=1", "http://evil.test/", "http://nowhere.test/", "http://10.1.2.3/", "http://127.0.0.1:1/"):
        results[url] = instance.run(fetch, url)
    for host in ("example.test", "93.184.216.34", "evil.test", "169.254.169.254", "[2606:2800:220:1::34]", "93.184.215.2"):
        results[f"tunnel {host}"] = instance.run(tunnel, host, 80)
    results["rubbish"] = [instance.run(say, request) for request in RUBBISH]
    results["direct"] = instance.run(attempt, "93.184.216.34")
    pool.release(pool.key(descriptor))
    os.close(descriptor)
    listed = pool.take("internet")
    pool.admit(pool.key(listed), "list", ("example.test:80", "93.184.216.35"))
    for host in ("example.test", "EXAMPLE.test.", "93.184.216.34", "93.184.216.35", "big.test", "0x5db8d822"):
        results[f"listed {host}"] = RootlessInstance(listed).run(tunnel, host, 80)
    results["listed example.test:81"] = RootlessInstance(listed).run(tunnel, "example.test", 81)
    pool.release(pool.key(listed))
    os.close(listed)
    for _ in range(5):
        none = pool.take("none")
        results["none"] = RootlessInstance(none).run(attempt, "127.0.0.1", 3128)
        os.close(none)
    pool.close()
    print(json.dumps(results))


main(sys.argv[1])
