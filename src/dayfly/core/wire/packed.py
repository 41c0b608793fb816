"""Functions packed small: what gateways and control keep of all those that nobody calls at the moment, and what a snapshot carries.

MessagePack, deflated against a typical function: less than a tenth of the objects that come out of it, in three microseconds. Ten thousand
functions repeat the same few words; what is really theirs is a name, a digest and a route. Equal functions are equal bytes, so that what
has not changed need not be opened to see that. Silent; used by control/catalog.py and gateway/catalog.py.
"""

import zlib
from collections.abc import Iterable, Iterator, MutableMapping

import msgspec

from dayfly.core.model.function import Alias, Function, FunctionConfig, Packed, Route, Version

Key = tuple[str, str]  # namespace, name

OPENED_MAX = 512  # functions that are kept unpacked, too
WINDOW_BITS = 12  # 4 KiB, a function and the typical one before it; larger ones lose a little
MEMORY_LEVEL = 4

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Function).decode
_config = FunctionConfig(handler="handler.handler", runtime="python3.11", route=(Route(path="/{rest+}"),))
_version = Version(namespace="default", function="", number=1, config=_config, code_digest="")
_TYPICAL = _encode(Function(namespace="default", name="", aliases=(Alias(name="live", weights=((1, 1.0),)),), versions=(_version,)))


def pack(function: Function) -> bytes:
    """A function as bytes. It may hold secrets' values, as the function does."""
    deflate = zlib.compressobj(wbits=WINDOW_BITS, memLevel=MEMORY_LEVEL, zdict=_TYPICAL)
    return deflate.compress(_encode(function)) + deflate.flush()


def unpack(data: bytes) -> Function:
    """The function again, its names shared with all others of that name. Raises ValueError when another release has packed it."""
    try:
        return _decode(zlib.decompressobj(wbits=WINDOW_BITS, zdict=_TYPICAL).decompress(data))
    except zlib.error as error:
        raise ValueError(f"a packed function that cannot be opened: {error}") from error


class Functions(MutableMapping[Key, Function]):
    """Functions by (namespace, name), packed. Each look unpacks anew, so whoever goes through all has one in hand at a time;
    who asks for one again and again asks with `opened`."""

    def __init__(self, packed: Iterable[Packed] = ()) -> None:
        self._data: dict[str, dict[str, bytes]] = {}  # by namespace, then name: ten thousand pairs would be a megabyte
        self._opened: dict[Key, Function] = {}
        for it in packed:
            self.take(it)

    def __getitem__(self, key: Key) -> Function:
        return unpack(self._data[key[0]][key[1]])

    def __setitem__(self, key: Key, function: Function) -> None:
        self.take(Packed(*key, pack(function)))

    def opened(self, key: Key) -> Function | None:
        """One of them, the same object as long as nothing of it changes and few others are asked for; None when it is not there."""
        found = self._opened.get(key)
        if found is None and (found := self.get(key)) is not None:
            if len(self._opened) >= OPENED_MAX:
                self._opened.clear()
            self._opened[key] = found
        return found

    def __delitem__(self, key: Key) -> None:
        self._opened.pop(key, None)
        names = self._data[key[0]]
        del names[key[1]]
        if not names:
            del self._data[key[0]]

    def __iter__(self) -> Iterator[Key]:
        return ((namespace, name) for namespace, names in self._data.items() for name in names)

    def __len__(self) -> int:
        return sum(map(len, self._data.values()))

    def take(self, packed: Packed) -> None:
        """One of them as it came."""
        self._opened.pop((packed.namespace, packed.name), None)
        self._data.setdefault(packed.namespace, {})[packed.name] = packed.data

    def packed(self) -> tuple[Packed, ...]:
        """All of them, as they travel."""
        return tuple(Packed(namespace, name, data) for namespace, names in self._data.items() for name, data in names.items())

    def same(self, packed: Packed) -> bool:
        """Whether this is what is here of that function, without opening either."""
        return self._data.get(packed.namespace, {}).get(packed.name) == packed.data

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and key[1] in self._data.get(key[0], ())

    def __repr__(self) -> str:
        return f"<Functions {len(self)} in {sum(len(it.data) for it in self.packed())} bytes>"
