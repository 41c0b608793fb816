"""JSON text in and out, as both contracts need it: strict (no NaN), compact, Decimal written as a number.

The standard library's own encoder and scanner, made once instead of per call: half the time of json.dumps and json.loads.
Must never let an exception of a hostile object through as anything but its Fault. Used by contracts/* and agent.py.
"""

import json
import sys
from json import encoder as _json_encoder

from dayfly.runtime.failure import Fault, message_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


class _DecimalFound(Exception):
    """The C encoder cannot write a Decimal's own digits: begin again with the Python one."""


class _Digits(float):
    """A Decimal on its way through the encoder; `text` is what is written."""

    text = "0"


def _is_decimal(value: object) -> bool:
    decimal = sys.modules.get("decimal")
    return decimal is not None and isinstance(value, decimal.Decimal)


def _refuse(value: object) -> "NoReturn":
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _default(value: object) -> "NoReturn":
    if _is_decimal(value):
        raise _DecimalFound
    _refuse(value)


def _default_with_decimals(value: "Any") -> _Digits:
    if not _is_decimal(value):
        _refuse(value)
    if not value.is_finite():
        raise ValueError("Out of range Decimal values are not JSON compliant")
    digits = _Digits()
    digits.text = str(value)
    return digits


def _float_text(value: float) -> str:
    if isinstance(value, _Digits):
        return value.text
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("Out of range float values are not JSON compliant")
    return float.__repr__(value)


_markers: dict[int, object] = {}


def _make_encode() -> "Callable[[Any], str]":
    """The C encoder with its options fixed; json.JSONEncoder where there is none."""
    make = _json_encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:
        return json.JSONEncoder(default=_default, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
    chunks = make(_markers, _default, _json_encoder.encode_basestring, None, ":", ",", False, False, False)

    def encode(value: "Any") -> str:
        return "".join(chunks(value, 0))

    return encode


_encode = _make_encode()
_decoder = json.JSONDecoder(parse_constant=lambda name: _refuse_constant(name))
_scan = _decoder.scan_once  # type: ignore[attr-defined]


def _refuse_constant(name: str) -> "NoReturn":
    raise ValueError(f"{name} is not JSON")


def _encode_slowly(value: object, *, ascii_only: bool) -> str:
    make = _json_encoder._make_iterencode  # type: ignore[attr-defined]
    escape = _json_encoder.encode_basestring_ascii if ascii_only else _json_encoder.encode_basestring
    return "".join(make({}, _default_with_decimals, escape, None, _float_text, ":", ",", False, False, False)(value, 0))


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON. Raises Fault Runtime.MarshalError for what JSON cannot say: NaN, circles, foreign objects, bad keys."""
    try:
        try:
            return _encode(value).encode()
        except _DecimalFound:
            text = _encode_slowly(value, ascii_only=False)
        except UnicodeEncodeError:  # lone surrogates have no UTF-8, but JSON has an escape for them
            text = _encode_slowly(value, ascii_only=True)
        try:
            return text.encode()
        except UnicodeEncodeError:
            return _encode_slowly(value, ascii_only=True).encode()
    except Exception as error:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {message_of(error)}") from None
    finally:
        if _markers:
            _markers.clear()


def loads(data: bytes) -> "Any":
    """The value of UTF-8 JSON text. Raises ValueError (or RecursionError) when it is none."""
    text = str(data, "utf-8")
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _decoder.decode(text)
    return value if end == len(text) else _decoder.decode(text)


def event(data: bytes) -> "Any":
    """A DIRECT call's event; no body at all is {} as with Lambda. Raises Fault Runtime.UnmarshalError."""
    if not data:
        return {}
    try:
        return loads(data)
    except Exception as error:
        raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {message_of(error)}") from None
