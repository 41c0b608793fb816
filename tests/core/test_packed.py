"""Functions packed small: the same comes out, equal functions are equal bytes, and what another release packed is refused."""

import zlib

import msgspec
import pytest

from dayfly.core.model.function import Alias, Function, FunctionConfig, Packed, Route, Version
from dayfly.core.model.limits import Limits
from dayfly.core.wire.packed import Functions, pack, unpack


def function(name: str = "hello", **config: object) -> Function:
    version = Version(namespace="default", function=name, number=1, config=FunctionConfig(**config), code_digest="ab" * 32)  # type: ignore[arg-type]
    return Function(
        namespace="default", name=name, aliases=(Alias(name="live", weights=((1, 1.0),)),), versions=(version,), secrets={"db": b"\0\xff"}
    )


RICH = function(
    env={"GREETING": "hej", "LONG": "x" * 20_000},
    secrets=("db",),
    egress=("example.com:443",),
    route=(Route(host="shop.example.com", path="/users/{id}", methods=("GET", "POST")),),
    limits=Limits(calls_per_day=5),
)


@pytest.mark.parametrize("it", [function(), RICH, msgspec.structs.replace(RICH, versions=RICH.versions * 50)])
def test_what_comes_out_is_what_went_in(it: Function) -> None:
    assert unpack(pack(it)) == it
    assert pack(unpack(pack(it))) == pack(it), "equal functions are equal bytes"


def test_a_typical_function_is_a_tenth_of_its_message() -> None:
    it = function("resize", route=(Route(path="/resize/{rest+}"),), keep_alive_seconds=0.0)
    assert len(pack(it)) < 160 < len(msgspec.msgpack.encode(it)) / 3


def test_what_another_release_has_packed_is_refused() -> None:
    deflate = zlib.compressobj(wbits=12, zdict=b"what was typical then")
    with pytest.raises(ValueError, match="cannot be opened"):
        unpack(deflate.compress(msgspec.msgpack.encode(function())) + deflate.flush())


def test_functions_are_a_mapping_that_travels() -> None:
    first, second = function("first"), function("second")
    here = Functions()
    here["default", "first"], here["default", "second"] = first, second
    there = Functions(here.packed())
    assert dict(there) == dict(here) == {("default", "first"): first, ("default", "second"): second}
    assert ("default", "first") in there and there.get(("default", "third")) is None and len(there) == 2
    assert there.same(Packed("default", "first", pack(first))) and not there.same(Packed("default", "first", pack(second)))
    assert not there.same(Packed("default", "third", pack(first)))
    del there["default", "first"]
    assert list(there) == [("default", "second")] and "2 in" in repr(here)


def test_an_opened_function_is_the_same_object_until_it_changes_or_goes() -> None:
    first, second = function("a"), function("b")
    functions = Functions()
    functions["default", "a"], functions["default", "b"] = first, second
    opened = functions.opened(("default", "a"))
    assert opened == first and functions.opened(("default", "a")) is opened and functions.opened(("default", "c")) is None
    changed = msgspec.structs.replace(first, floors={1: 3})
    functions["default", "a"] = changed
    assert functions.opened(("default", "a")) == changed
    del functions["default", "a"]
    assert functions.opened(("default", "a")) is None
