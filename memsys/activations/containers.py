"""Values in plain tuples, lists and dictionaries, replaced one for one in containers built anew."""

from __future__ import annotations

from collections.abc import Callable


def replaced(value: object, kind: type, replacement: Callable[[object], object]) -> object:
    """`value` with every instance of `kind` in it replaced. Other containers (named tuples, caches) count as values:
    only the plain ones can be built anew without anybody noticing."""
    if isinstance(value, kind):
        return replacement(value)
    if type(value) in (tuple, list):
        return type(value)(replaced(item, kind, replacement) for item in value)
    if type(value) is dict:
        return {key: replaced(item, kind, replacement) for key, item in value.items()}
    return value
