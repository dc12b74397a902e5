"""Plans and traces as JSON files that are what was saved, or are refused: a digest tells of any change, and every value
is compared with the type of the field that it goes to before anyone computes with it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from memsys.errors import InputError, MemsysError

Record = TypeVar("Record")
_LARGEST = (1 << 63) - 1  # numbers cross into C++
_WRONG = (OSError, ValueError, KeyError, TypeError, ArithmeticError, LookupError, RecursionError, RuntimeError,
          MemsysError)  # fmt: skip


def write(path: str | os.PathLike[str], format_: str, record: object) -> None:
    """Writes a dataclass of numbers, words, tuples, mappings, enumerations and other such dataclasses."""
    body = json.loads(json.dumps(_plain(record)))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"format": format_, "sha256": _digest(format_, body), "body": body}, file)


def read(path: str | os.PathLike[str], format_: str, kind: type[Record]) -> Record:
    """What `write` wrote. To be called within `refusing`: raises ValueError and its like for anything else."""
    with open(path, encoding="utf-8") as file:
        found = json.load(file, object_pairs_hook=_once, parse_constant=_no_number)
    if not isinstance(found, dict) or found.get("format") != format_:
        raise ValueError(f"wanted the format {format_!r}, found {_shown(found, 'format')}")
    if set(found) != {"format", "sha256", "body"}:
        raise ValueError(f"wanted format, sha256 and body, found {sorted(found)}")
    if found["sha256"] != _digest(format_, found["body"]):
        raise ValueError("its digest is another: the file was changed, or cut and mended")
    return build(kind, found["body"])


@contextmanager
def refusing(path: str | os.PathLike[str], wanted: str, remedy: str) -> Iterator[None]:
    """Turns whatever reading a file of anything may raise into an InputError."""
    try:
        yield
    except _WRONG as error:
        told = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{os.fspath(path)!r}: wanted {wanted}, found something else ({told}); {remedy}") from None


def build(kind: Any, value: object, place: str = "") -> Any:
    """The value as the type that an annotation names. Raises ValueError where it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return build(kind, value, place)
    if is_dataclass(kind):
        return _build_record(kind, value, place)
    if origin is tuple and isinstance(value, list):
        return tuple(build(arguments[0], one, f"{place}[{index}]") for index, one in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        to_key = int if arguments[0] is int else str
        return {to_key(key): build(arguments[1], one, f"{place}.{key}") for key, one in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and _is_number(value):
        return float(value)
    if isinstance(value, kind if origin is None else origin) and isinstance(value, bool) == (kind is bool):
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{place}: wanted a number of 64 bits, found {value:.3e}")
        return value
    raise ValueError(f"{place}: wanted {getattr(kind, '__name__', kind)}, found {value!r:.80}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


@functools.cache
def _hints(kind: type) -> dict[str, object]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _build_record(kind: type, value: object, place: str) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict) or set(value) != set(hints):
        names = sorted(set(value) ^ set(hints)) if isinstance(value, dict) else repr(value)[:80]
        raise ValueError(f"{place or kind.__name__}: wanted exactly the fields of {kind.__name__}, found {names}")
    return kind(**{name: build(hint, value[name], f"{place}.{name}") for name, hint in hints.items()})


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _digest(format_: str, body: object) -> str:
    text = json.dumps([format_, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name twice in one object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _shown(found: object, key: str) -> str:
    return repr(found.get(key))[:80] if isinstance(found, dict) else f"a {type(found).__name__}"
