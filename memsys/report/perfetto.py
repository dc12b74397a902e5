"""Writes a timeline as Chrome-trace JSON: a track a lane, a counter a tier, planned as a process of its own beside
measured. (Trace Event Format: complete events "X", counters "C", metadata "M"; times in microseconds.)
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from memsys.report.timeline import COMPUTE, LANES, LINKS, REMAKE, STALL, Slice, Timeline

MEASURED, PLANNED = 1, 2
_INNER = (STALL, REMAKE)  # happen inside of forward or backward, and are shown inside of them
_TRACKS = {lane: index for index, lane in enumerate((lane for lane in LANES if lane not in _INNER), start=1)}
_TRACKS |= dict.fromkeys(_INNER, _TRACKS[COMPUTE])


def write_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Writes the file. Raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(trace_of(timeline), file)


def trace_of(timeline: Timeline) -> dict[str, object]:
    """The JSON object."""
    events = _process(MEASURED, "measured", timeline.slices, timeline.levels, 0.0)
    if timeline.planned is not None:
        planned = timeline.planned
        events += _process(PLANNED, "planned", planned.slices, planned.levels, timeline.last_step_us)
    facts = {**timeline.summary(), "limit_bytes": dict(timeline.limits)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}


def _process(
    process: int, name: str, slices: Iterable[Slice], levels: Mapping[str, Sequence[tuple[float, int]]], shift_us: float
) -> list[dict[str, object]]:
    slices = list(slices)
    used = {slice_.lane for slice_ in slices}
    events = [_named("process_name", process, 0, name)]
    for lane, track in _TRACKS.items():
        if lane in used:
            events.append(_named("thread_name", process, track, COMPUTE if lane in _INNER else lane))
            events.append({"ph": "M", "name": "thread_sort_index", "pid": process, "tid": track,
                           "args": {"sort_index": track}})  # fmt: skip
    compute = [slice_ for slice_ in slices if slice_.lane == COMPUTE]
    edges = sorted({edge for slice_ in compute for edge in (slice_.begin_us, slice_.end_us)})
    for slice_ in slices:
        cuts = [edge for edge in edges if slice_.begin_us < edge < slice_.end_us] if slice_.lane in _INNER else []
        bounds = [slice_.begin_us, *cuts, slice_.end_us]
        for begin_us, end_us in itertools.pairwise(bounds):
            events.append(_complete(process, slice_, begin_us + shift_us, end_us - begin_us))
    for tier, changes in levels.items():
        for at_us, bytes_ in changes:
            events.append({"ph": "C", "name": f"{tier} bytes", "pid": process, "tid": 0, "ts": at_us + shift_us,
                           "args": {"bytes": bytes_}})  # fmt: skip
    return events


def _named(kind: str, process: int, track: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}


def _complete(process: int, slice_: Slice, begin_us: float, duration_us: float) -> dict[str, object]:
    arguments: dict[str, object] = {"bytes": slice_.bytes, "span": slice_.span} if slice_.lane in LINKS else {}
    if arguments and isinstance(slice_, Slice):  # a plan's slices need not have these
        arguments |= {"touches_device": slice_.touches_device, "is_failed": slice_.is_failed}
        if slice_.issued_us is not None:
            arguments["issued_us"] = slice_.issued_us
    return {"ph": "X", "name": getattr(slice_, "name", "") or slice_.lane, "cat": slice_.lane, "pid": process,
            "tid": _TRACKS.get(slice_.lane, len(_TRACKS) + 1), "ts": begin_us, "dur": duration_us,
            "args": arguments}  # fmt: skip
