"""Which version answers this address? Pure: a target's text, a function's aliases, one die.

`/function/NAME[.NAMESPACE][:QUALIFIER][/path…]`: the name's last dot splits off the namespace (as OpenFaaS writes it), a qualifier is an
alias or a version number (as Lambda has it), the rest is the function's own path, kept raw. Called by gateway/dispatch.py.
"""

from typing import NamedTuple

from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function, Version
from dayfly.core.model.names import LIVE, NAME, split_qualified

PREFIX = "/function/"


class Target(NamedTuple):
    """What a request's address names. `path` begins with '/'; `query` has no '?'; both are raw, still percent-encoded."""

    namespace: str
    function: str
    qualifier: str
    path: str
    query: str


def parse_target(raw: str) -> Target:
    """Read an address that begins with PREFIX. Raises Refusal bad_name."""
    address, _, query = raw[len(PREFIX) :].partition("?")
    first, slash, rest = address.partition("/")
    name, _, qualifier = first.partition(":")
    namespace, function = split_qualified(name)
    for text, what in ((function, "function"), (namespace, "namespace"), (qualifier or LIVE, "alias or version")):
        if not NAME.fullmatch(text):
            raise Refusal("bad_name", f"{text!r} is not a valid {what} name.")
    return Target(namespace, function, qualifier or LIVE, "/" + rest if slash else "/", query)


def pick_version(function: Function, qualifier: str, die: float) -> Version:
    """The version that takes this call. `die` is in [0, 1). Raises Refusal version_not_found."""
    number = -1
    for alias in function.aliases:
        if alias.name == qualifier:
            number = pick_weighted(alias.weights, die)
            break
    else:
        if qualifier.isascii() and qualifier.isdigit():
            number = int(qualifier)
    for version in function.versions:
        if version.number == number:
            return version
    what = f"version {qualifier}" if qualifier.isdigit() else f"alias {qualifier!r}"
    raise Refusal("version_not_found", f"Function {function.name!r} has no {what} that takes calls.")


def pick_weighted(weights: tuple[tuple[int, float], ...], die: float) -> int:
    """A version number by weight; the last one takes what rounding leaves over."""
    if len(weights) == 1:
        return weights[0][0]
    for number, weight in weights:
        if die < weight:
            return number
        die -= weight
    return weights[-1][0]
