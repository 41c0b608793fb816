"""How many gateways? Silent, and without imports: the supervisor asks, too (app.py), besides `dayfly up`."""

CORES_PER_GATEWAY = 4


def gateways_of(wanted: "int | str", cores: int) -> int:
    """`wanted` is the setting. "auto": one for every four cores, at least one.

    A gateway is one thread, and of what the cheapest call costs altogether about half is its own (docs/performance.md): the rest is the
    instance and the kernel. Most functions do more than nothing, and with fewer cores than four to a gateway, gateways would take
    the processor from the functions that they wait for."""
    return max(1, cores // CORES_PER_GATEWAY) if isinstance(wanted, str) else max(1, wanted)
