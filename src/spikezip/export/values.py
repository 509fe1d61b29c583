"""Arguments and notes as JSON, and back, each kind by a row.

Numbers, strings, None and lists are themselves; everything else is an object of one key that says what it is:
``{"node": "relu"}``, ``{"dtype": "float32"}``, ``{"float": "-inf"}``, ``{"tuple": [1, 2]}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from spikezip.errors import BundleError, SpikezipError
from spikezip.export.vocabulary import DTYPES, MEMORY_FORMATS
from spikezip.levels import Levels
from spikezip.quantize.integer import Exactness

_DEEPEST = 16  #: nested lists in an argument or note
_LONGEST_TEXT = 1 << 16
_INT64 = 1 << 63
_INFINITIES = {"inf": math.inf, "-inf": -math.inf}
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}")

#: Small frozen dataclasses that notes may hold; one more is one more row.
_RECORDS: dict[str, tuple[type, dict[str, type]]] = {
    "Exactness": (Exactness, {"name": str, "op": str, "bits": float, "arithmetic": str}),
    "Levels": (Levels, {"lowest": int, "highest": int}),
}


def dumps(document: Any) -> str:
    """JSON of one spelling only: the same value is always the same bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def loads(text: str) -> Any:
    """The inverse of :func:`dumps`, strict: no NaN or infinity, no repeated keys, no endless numbers."""
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
        )
    except RecursionError:
        raise BundleError("its header is nested too deeply") from None
    except ValueError as reason:
        raise BundleError(f"its header is not JSON ({reason})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BundleError("its header holds a key twice")
    return found


def _no_constant(text: str) -> Any:
    raise BundleError(f"its header holds {text}, which is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > 20 or not -_INT64 <= int(text) < _INT64:
        raise BundleError("its header holds a whole number of more than 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BundleError("its header holds a number too large for a float")
    return value


_Types = type | tuple[type, ...]


def fields(
    value: Any, where: str, wanted: Mapping[str, _Types], optional: Mapping[str, _Types] = MappingProxyType({})
) -> dict[str, Any]:
    """``value`` if it is an object of exactly these keys, of these types (a bool is no int); else BundleError."""
    if not isinstance(value, dict):
        raise BundleError(f"{where} is not an object")
    for key in wanted:
        if key not in value:
            raise BundleError(f"{where} lacks {key!r}")
    for key, item in value.items():
        types = wanted.get(key, optional.get(key))
        if types is None:
            raise BundleError(f"{where} holds {key[:80]!r}, which does not belong there")
        types = types if isinstance(types, tuple) else (types,)
        if not isinstance(item, types) or (isinstance(item, bool) and bool not in types):
            raise BundleError(f"{where}: {key!r} is of the wrong type ({type(item).__name__})")
    return value


def encode(value: Any) -> Any:
    """A value as JSON data; BundleError for one that a bundle cannot hold."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return int(value)
    if isinstance(value, float) and not math.isnan(value):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, slice):
        return {"slice": [encode(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype) and value in DTYPES.values():
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": "cpu"}  # a bundle is always loaded on the CPU
    if value is torch.strided:
        return {"layout": "strided"}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(v) for key, v in value.items()}}
    for kind, (record, names) in _RECORDS.items():
        if type(value) is record:
            return {"record": {"kind": kind, **{name: encode(getattr(value, name)) for name in names}}}
    raise BundleError(f"a {type(value).__name__} ({str(value)[:60]}) cannot be written into a bundle")


def decode(value: Any, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """The inverse of :func:`encode`; ``nodes`` are those that may be referred to."""
    if depth > _DEEPEST:
        raise BundleError("a value is nested too deeply")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or not _is_text(value)):
        raise BundleError(f"a text is too long or not Unicode ({value[:40]!r}...)")
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [decode(v, nodes, depth + 1) for v in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise BundleError(f"a value is neither a number, a text, a list nor an object of one key: {str(value)[:60]!r}")
    (tag, inner), *_ = value.items()
    if tag == "node":
        if not isinstance(inner, str) or inner not in nodes:
            raise BundleError(f"the node {str(inner)[:80]!r} is used before it is computed, or does not exist")
        return nodes[inner]
    if tag not in _DECODERS:
        raise BundleError(f"values of kind {tag[:80]!r} are not known. If a newer spikezip wrote it, upgrade")
    return _DECODERS[tag](inner, lambda v: decode(v, nodes, depth + 1))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _one_of(table: Mapping[str, Any]) -> Callable[[Any, Callable], Any]:
    def choose(inner: Any, _: Callable) -> Any:
        if not isinstance(inner, str) or inner not in table:
            raise BundleError(f"{str(inner)[:80]!r} is none of {', '.join(table)}")
        return table[inner]

    return choose


def _tuple(inner: Any, deeper: Callable) -> tuple:
    if not isinstance(inner, list):
        raise BundleError("a tuple is not a list of values")
    return tuple(deeper(v) for v in inner)


def _slice(inner: Any, deeper: Callable) -> slice:
    if not isinstance(inner, list) or len(inner) != 3:
        raise BundleError("a slice has three values")
    return slice(*(deeper(v) for v in inner))


def _dict(inner: Any, deeper: Callable) -> dict:
    if not isinstance(inner, dict):
        raise BundleError("a dict is not an object")
    return {deeper(key): deeper(v) for key, v in inner.items()}


def _record(inner: Any, deeper: Callable) -> Any:
    kind = inner.get("kind") if isinstance(inner, dict) else None
    if not isinstance(kind, str) or kind not in _RECORDS:
        raise BundleError(f"records of kind {str(kind)[:80]!r} are not known. If a newer spikezip wrote it, upgrade")
    record, types = _RECORDS[kind]
    plain = {key: deeper(v) for key, v in inner.items() if key != "kind"}
    fields(plain, f"a record of kind {kind}", types)
    try:
        return record(**plain)
    except SpikezipError as reason:
        raise BundleError(str(reason)) from None


_DECODERS: dict[str, Callable[[Any, Callable], Any]] = {
    "float": _one_of(_INFINITIES),
    "dtype": _one_of(DTYPES),
    "memory_format": _one_of(MEMORY_FORMATS),
    "device": _one_of({"cpu": torch.device("cpu")}),
    "layout": _one_of({"strided": torch.strided}),
    "tuple": _tuple,
    "slice": _slice,
    "dict": _dict,
    "record": _record,
}
