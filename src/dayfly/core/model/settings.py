"""The platform's settings: one frozen struct, every maximum named. `docs/configuration.md` is generated from it.

Sources, weakest first: the defaults here, `dayfly.toml` ([platform] table) in the data directory or named by --config,
environment variables DAYFLY_<NAME>, command-line flags. Reading them is cli/settings.py's job; bounds are checked there by
msgspec from the annotations below.
"""

from typing import Annotated, Literal

import msgspec


def _about(text: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None) -> msgspec.Meta:
    """A field's description and bounds, in one place."""
    if gt is not None:
        return msgspec.Meta(description=text, gt=gt, le=le)
    return msgspec.Meta(description=text, ge=ge, le=le)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `dayfly up` can be told."""

    # Where
    host: Annotated[str, _about("Address the public port listens on.")] = "127.0.0.1"
    port: Annotated[int, _about("Public TCP port; 0 picks a free one.", ge=0, le=65535)] = 8080
    data: Annotated[str, _about("Data directory; /var/lib/dayfly for root, ~/.local/share/dayfly otherwise.")] = ""
    database: Annotated[
        str,
        _about(
            "PostgreSQL for functions, tokens, usage and logs: postgresql://… or file:/PATH of it; empty: SQLite in the data directory."
        ),
    ] = ""
    run: Annotated[str, _about("Directory of Unix sockets and pid files; DATA/run unless that path is too long.")] = ""
    user: Annotated[str, _about("User (name or uid) that control becomes when started by root; if empty, one of its own.")] = ""
    isolation: Annotated[Literal["auto", "strict"], _about("strict refuses to run a function when a wall is missing on this machine.")] = (
        "auto"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _about("The platform's own log.")] = "info"
    gateways: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=64)] | Literal["auto"],
        _about("Processes that answer calls, all on the one port; auto: one for every four cores."),
    ] = "auto"
    metrics_auth: Annotated[Literal["token", "none"], _about("Whether /metrics needs a token with the read verb.")] = "token"

    # HTTP
    connections_max: Annotated[int, _about("Open client connections per gateway.", ge=1)] = 10_000
    websocket_idle_seconds: Annotated[float, _about("A WebSocket whose client is silent for so long, even to a ping, is closed.", gt=0)] = (
        600.0
    )
    websocket_message_bytes_max: Annotated[int, _about("One message of a WebSocket, either way.", ge=1)] = 1024 * 1024
    connections_per_peer_max: Annotated[
        int, _about("Of these, from one address (an IPv6 /64 is one); 127.0.0.1, ::1 and trusted_proxies are not counted.", ge=1)
    ] = 1000
    header_bytes_max: Annotated[int, _about("All headers of one request.", ge=1024, le=65_000)] = 32 * 1024
    headers_max: Annotated[int, _about("Number of headers of one request.", ge=1)] = 128
    url_bytes_max: Annotated[int, _about("Request target.", ge=64, le=32_768)] = 8 * 1024
    body_bytes_max: Annotated[int, _about("Body of an invocation.", ge=1)] = 6 * 1024 * 1024
    stream_bytes_max: Annotated[
        int, _about('Body of a request to a web application (handler = "module:application"), which reads it as it comes.', ge=1)
    ] = 5 * 1024 * 1024 * 1024
    uploads_max: Annotated[int, _about("Such bodies on their way at once, per gateway.", ge=1)] = 256
    buffered_bytes_max: Annotated[int, _about("Bodies of all calls held in memory by one gateway.", ge=1024 * 1024)] = 512 * 1024 * 1024
    upload_bytes_max: Annotated[int, _about("Body of a control request (a bundle).", ge=1)] = 256 * 1024 * 1024
    header_timeout_seconds: Annotated[float, _about("Time for a request's headers to arrive.", gt=0)] = 10.0
    body_timeout_seconds: Annotated[float, _about("Longest pause while a body arrives.", gt=0)] = 20.0
    idle_timeout_seconds: Annotated[float, _about("Keep-alive connection without a request.", gt=0)] = 75.0
    half_closed_seconds: Annotated[
        float, _about("How long a client that has closed its sending side keeps its place in a queue; 0: it is taken as gone.", ge=0)
    ] = 1.0
    write_buffer_bytes_max: Annotated[int, _about("Answer bytes buffered for a slow client.", ge=65_536)] = 1024 * 1024
    drain_timeout_seconds: Annotated[float, _about("Time given to accepted calls at shutdown.", gt=0)] = 10.0

    trusted_proxies: Annotated[
        str, _about("Proxies whose X-Forwarded-… headers are believed, as ranges with commas between them; empty: nobody's.")
    ] = ""

    # The TLS front: Caddy, a child of the supervisor (docs/operations.md)
    domain: Annotated[str, _about("Host names that a TLS front serves, with commas between them; empty: there is no front.")] = ""
    front_host: Annotated[str, _about("Address the front listens on; empty: all of this machine's.")] = ""
    front_https_port: Annotated[int, _about("The front's port for HTTPS; 0 picks a free one.", ge=0, le=65535)] = 443
    front_http_port: Annotated[int, _about("Its port for HTTP, which leads to HTTPS; 0 picks a free one.", ge=0, le=65535)] = 80
    front_tls: Annotated[Literal["acme", "internal"], _about("Certificates from Let's Encrypt, or from an authority of its own.")] = "acme"

    # Pools
    starts_in_flight_max: Annotated[int, _about("Instances being started at once, whole machine.", ge=1)] = 16
    starts_fresh_max: Annotated[int, _about("Of these, begun within the last 20 ms; 0: two for each processor.", ge=0)] = 0
    starts_per_version_max: Annotated[int, _about("Instances of one version being started at once.", ge=1)] = 8
    prepared_max: Annotated[int, _about("Sandboxes that stand ready, for each namespace and interpreter; 0: none.", ge=0, le=64)] = 4
    templates_memory_mb: Annotated[int, _about("Memory of all snapshots' templates; the least worth it go beyond.", ge=0)] = 1024
    instances_max: Annotated[int, _about("Instances on this machine.", ge=1)] = 1000
    memory_available_bytes_min: Annotated[
        int, _about("Available memory of the machine (or container) below which idle instances leave; 0 turns this off.", ge=0)
    ] = 256 * 1024 * 1024
    init_timeout_seconds: Annotated[float, _about("Time for a function's module to import.", gt=0)] = 10.0
    prefetch_max: Annotated[int, _about("Calls waiting in one version's socket, per free slot, when calls are very short.", ge=1)] = 16

    # Asynchronous calls (docs/async.md)
    async_waiting_max: Annotated[int, _about("Asynchronous calls that wait, in all; further ones get 429.", ge=1)] = 5_000_000
    async_share: Annotated[float, _about("Share of a function's instances that its asynchronous calls may take.", gt=0, le=1)] = 0.5
    async_beside_per_second: Annotated[
        float, _about("Asynchronous calls that one gateway begins each second while synchronous calls come.", gt=0)
    ] = 2000.0
    async_concurrency: Annotated[int, _about("Asynchronous calls of one function that one gateway runs at once.", ge=1)] = 16
    async_in_hand_max: Annotated[int, _about("Asynchronous calls given to one gateway and not settled.", ge=1, le=100_000)] = 4096
    async_in_hand_bytes_max: Annotated[int, _about("Their bodies, beyond which no more are given out.", ge=1024)] = 64 * 1024 * 1024
    async_lease_seconds: Annotated[
        float, _about("A lease that nobody extends ends after this: how late a call runs again when control and its gateway died.", ge=1)
    ] = 15.0
    async_accept_seconds: Annotated[float, _about("Time in which control has to say that a call is durable; then 503.", gt=0)] = 5.0
    async_delay_seconds_max: Annotated[float, _about("Longest delay of a call.", ge=0)] = 14 * 86_400.0
    async_dedup_seconds: Annotated[float, _about("For how long an Idempotency-Key is known.", ge=0)] = 86_400.0
    async_depth_max: Annotated[int, _about("Calls in a chain, each made by the one before.", ge=1, le=10_000)] = 32
    async_result_keep_seconds: Annotated[float, _about("How long settled calls and their results are kept.", ge=0)] = 86_400.0
    async_dead_keep_seconds: Annotated[float, _about("How long dead calls are kept for redriving.", ge=0)] = 14 * 86_400.0
    maps_max: Annotated[int, _about("Maps that are kept, ended ones too, in all.", ge=1, le=100_000)] = 10_000
    map_items_max: Annotated[int, _about("Items of one map.", ge=1, le=10_000_000)] = 1_000_000
    map_upload_seconds: Annotated[float, _about("A map of which no more items come for so long, and which is not whole, ends.", gt=0)] = (
        3600.0
    )
    map_seconds_max: Annotated[float, _about("Age at which an item of a map that has not run is given up.", gt=0)] = 7 * 86_400.0
    map_keep_seconds: Annotated[float, _about("How long a map that has ended is kept with its results.", ge=0)] = 86_400.0
    map_reduce_items_max: Annotated[int, _about("Results that a reducer is given at once.", ge=2, le=1_000_000)] = 10_000
    callback_allow: Annotated[
        str, _about("Private ranges that callbacks may reach, as in 10.1.0.0/16,127.0.0.1/32; empty: public addresses only.")
    ] = ""
    callback_timeout_seconds: Annotated[float, _about("Time that one callback may take.", gt=0, le=300)] = 10.0
    callback_concurrency: Annotated[int, _about("Callbacks under way at once.", ge=1, le=1000)] = 32

    # Egress: where functions may go, and how much of it
    egress_max: Annotated[Literal["internet", "all"], _about("Widest egress of functions; all lets them ask for private networks.")] = (
        "internet"
    )
    egress_allow: Annotated[str, _about("Private ranges that functions with internet may reach, as in 10.1.0.0/16:443.")] = ""
    egress_deny: Annotated[str, _about("Ranges that no function may reach, separated by commas; this wins over all else.")] = ""
    egress_connections_max: Annotated[int, _about("Outgoing TCP connections of all instances.", ge=1)] = 4096
    egress_connections_per_instance_max: Annotated[int, _about("Outgoing TCP connections of one instance.", ge=1)] = 256
    egress_connect_timeout_seconds: Annotated[float, _about("Time for an outgoing connection to be made.", gt=0)] = 10.0
    egress_idle_timeout_seconds: Annotated[float, _about("Outgoing connection on which nothing moves.", gt=0)] = 300.0
    egress_bytes_per_second_max: Annotated[int, _about("Outgoing and incoming bytes of one instance; 0 is no limit.", ge=0)] = 0
    egress_queries_max: Annotated[int, _about("DNS queries of all instances waiting for an answer.", ge=1)] = 1024
    egress_queries_per_instance_max: Annotated[int, _about("DNS queries of one instance waiting for an answer.", ge=1)] = 64
    egress_query_timeout_seconds: Annotated[float, _about("Time for one of the machine's name servers to answer.", gt=0)] = 3.0

    # Logs and usage
    log_lines_per_call_max: Annotated[int, _about("Lines kept of one call; the rest is counted.", ge=1)] = 10_000
    log_bytes_per_second_max: Annotated[int, _about("Log bytes per function and second; the rest is counted.", ge=1024)] = 1024 * 1024
    log_buffer_max: Annotated[int, _about("Log records buffered in a gateway while control is away.", ge=100)] = 20_000
    log_retention_days: Annotated[float, _about("Age at which log records are deleted.", gt=0)] = 7.0
    log_store_bytes_max: Annotated[int, _about("Disk for log records kept; the oldest go first.", ge=1024 * 1024)] = 1024 * 1024 * 1024
    log_records_max: Annotated[int, _about("Log records kept in all; the oldest go first.", ge=1000)] = 1_000_000

    # Deploys
    bundle_entries_max: Annotated[int, _about("Files in one bundle.", ge=1)] = 20_000
    bundle_unpacked_bytes_max: Annotated[int, _about("Bundle after unpacking.", ge=1)] = 256 * 1024 * 1024
    build_timeout_seconds: Annotated[float, _about("Time for installing dependencies.", gt=0, le=3600)] = 300.0
    versions_kept: Annotated[int, _about("Newest versions kept per function beside those an alias names.", ge=1)] = 10

    # Schedules (docs/schedules.md)
    schedules_per_namespace_max: Annotated[int, _about("Schedules of one namespace, those of manifests included.", ge=0)] = 1000
    schedule_period_seconds_min: Annotated[float, _about("Shortest distance of two due times of one schedule.", ge=1)] = 1.0
    schedule_payload_bytes_max: Annotated[int, _about("Payload of one schedule.", ge=0, le=262_144)] = 64 * 1024
    schedule_late_seconds: Annotated[
        float, _about("How late a firing may be and still be on time; what is later was missed, and `missed` decides.", ge=0.05, le=60)
    ] = 5.0
    schedule_missed_max: Annotated[int, _about("Due times that one schedule makes up for at once, the newest.", ge=1, le=500)] = 100
    schedule_missed_seconds_max: Annotated[float, _about("Age beyond which `missed = all` makes up for nothing.", ge=0)] = 86_400.0
    schedule_queued_max: Annotated[int, _about("Firings of one schedule with `overlap = queue` that wait or run.", ge=1, le=500)] = 100

    # Money: price of what was used, in any currency you like; figures of `dayfly cost`.
    tariff_per_million_calls: Annotated[float, _about("Price of a million calls.", ge=0)] = 0.20
    tariff_per_gb_second: Annotated[float, _about("Price of one GB-second.", ge=0)] = 0.0000166667
    tariff_round_ms: Annotated[int, _about("Execution time is rounded up to a multiple of this.", ge=1)] = 1
    currency: Annotated[str, _about("Label printed beside costs.")] = "USD"
