"""The order in which a forward pass uses tensors, told from their names: what is read together lies together."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What comes before the layers or after them, wherever a file that sorts by name happened to put it.
_FIRST = re.compile(r"embed|emb\b|\bwte\b|\bwpe\b|\bshared\b|\btoken")
_LAST = re.compile(r"head\b|\bln_f\b|\bfinal|\bscore\b|classifier|logits|embed_out|\bpooler\b")
_HEAD, _LAYERS, _TAIL = 0, 1, 2


def order_by_use(names: Sequence[str]) -> list[int]:
    """Positions in `names`, in order of use: what precedes the layers, the layers by their numbers, the rest.

    A layer is the first part of a dotted name that is a number; "encoder" lists go before others, lists of layers
    otherwise in the order in which they appear. Within one layer, and outside of the layers, the given order stays.
    """
    parts = [_layer_of(name) for name in names]
    lists: dict[str, int] = {}
    for part in parts:
        if part is not None:
            lists.setdefault(part[0], len(lists))
    first_layer = next((place for place, part in enumerate(parts) if part is not None), len(names))

    def key(place: int) -> tuple:
        part = parts[place]
        if part is None:
            return (_side_of(names[place], place < first_layer), 0, 0, 0, place)
        prefix, number = part
        return (_LAYERS, "encoder" not in prefix.split("."), lists[prefix], number, place)

    return sorted(range(len(names)), key=key)


def _layer_of(name: str) -> tuple[str, int] | None:
    parts = name.split(".")
    # isdecimal() alone is also true of digits that are not ASCII.
    place = next((place for place, part in enumerate(parts) if part.isascii() and part.isdecimal()), None)
    if place is None or len(parts[place]) > 9:
        return None
    return ".".join(parts[:place]), int(parts[place])


def _side_of(name: str, is_before: bool) -> int:
    if _LAST.search(name):
        return _TAIL
    if _FIRST.search(name):
        return _HEAD
    return _HEAD if is_before else _TAIL
