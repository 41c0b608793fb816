"""Settings → the configuration of Caddy, our TLS front, as the JSON it takes. Pure data: gateway/front.py writes it and becomes Caddy.

It listens on sockets that it inherits (so it needs no privilege), has no admin API, speaks HTTP/1.1 and HTTP/2, passes everything on to the
gateway's port as it came (streams and upgrades too), and says who called. Certificates are kept below the front's own folder.
"""

from typing import Any

from dayfly.core.model.names import HOST, HOST_LENGTH_MAX
from dayfly.core.model.settings import Settings

DOMAINS_MAX = 100
KEEP_ALIVE_SHARE = 0.5  # of the gateway's idle timeout: a connection must not be closed there just when it is used again
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on


def domains_of(settings: Settings) -> tuple[str, ...]:
    """The names to serve, in small letters. Raises ValueError naming what is none."""
    names = tuple(dict.fromkeys(part.strip().lower() for part in settings.domain.split(",") if part.strip()))
    if settings.domain and not names:
        raise ValueError(f"{settings.domain[:80]!r} names nothing")
    for name in names:
        if len(name) > HOST_LENGTH_MAX or not HOST.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no host name")
        if name.startswith("*.") and settings.front_tls == "acme":
            raise ValueError(f"{name!r}: an authority gives such a certificate to a name server only, which Dayfly is none")
    if len(names) > DOMAINS_MAX:
        raise ValueError(f"{len(names)} names; at most {DOMAINS_MAX}")
    return names


def urls_of(domain: str, https_port: int) -> list[str]:
    """Where people find the platform, for settings that were checked."""
    port = "" if https_port == 443 else f":{https_port}"
    return [f"https://{name.strip().lower()}{port}" for name in domain.split(",") if name.strip()]


def gateway_address(settings: Settings) -> str:
    """From where, and to where, the front connects: the address on which the gateway listens (`host`, which is a number by then)."""
    return _WILDCARDS.get(settings.host, settings.host)


def config(settings: Settings, folder: str, sockets: tuple[int, int]) -> dict[str, Any]:
    """Caddy's whole configuration. `sockets`: the numbers of the inherited sockets for HTTPS and HTTP."""
    names = list(domains_of(settings))
    tls, plain = sockets
    address = gateway_address(settings)
    upstream = f"[{address}]:{settings.port}" if ":" in address else f"{address}:{settings.port}"
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": upstream}],
        "transport": {"protocol": "http", "keep_alive": {"idle_timeout": _seconds(settings.idle_timeout_seconds * KEEP_ALIVE_SHARE)}},
    }
    port = "" if settings.front_https_port == 443 else f":{settings.front_https_port}"
    location = f"https://{{http.request.host}}{port}{{http.request.uri}}"
    redirect = {"handler": "static_response", "status_code": 308, "headers": {"Location": [location]}}
    stranger = {"handler": "static_response", "status_code": 421}  # Misdirected Request: this name is not served here
    common = {"automatic_https": {"disable": True}, "read_header_timeout": _seconds(settings.header_timeout_seconds)}
    limits = {"max_header_bytes": settings.header_bytes_max, "idle_timeout": _seconds(settings.idle_timeout_seconds)}
    return {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "WARN", "encoder": {"format": "json"}}}},
        "storage": {"module": "file_system", "root": folder},
        "apps": {
            "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
            "tls": {
                "certificates": {"automate": names},
                "automation": {"policies": [{"subjects": names, "issuers": [{"module": settings.front_tls}]}]},
            },
            "http": {
                "grace_period": _seconds(settings.drain_timeout_seconds),
                "servers": {
                    "https": common
                    | limits
                    | {
                        "listen": [f"fd/{tls}"],
                        "protocols": ["h1", "h2"],
                        "tls_connection_policies": [{}],
                        "routes": [{"match": [{"host": names}], "handle": [proxy]}, {"handle": [stranger]}],
                    },
                    "http": common
                    | limits
                    | {
                        "listen": [f"fd/{plain}"],
                        "protocols": ["h1"],
                        "routes": [{"match": [{"host": names}], "handle": [redirect]}, {"handle": [stranger]}],
                    },
                },
            },
        },
    }


def _seconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
