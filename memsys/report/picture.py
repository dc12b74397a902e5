"""Draws a timeline as a PNG: memory by tier over its budgets, and under it what each lane was doing, with what was
planned beside what was measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from memsys.errors import UnsupportedError
from memsys.report.timeline import COMPUTE, LANES, REMAKE, STALL, TIERS, Timeline

_COLOURS = {"device": "#3465a4", "host": "#f57900", "file": "#73a534", COMPUTE: "#888a85", STALL: "#cc0000",
            REMAKE: "#75507b"}  # fmt: skip
_MIB = 1 << 20
_US_PER_S = 1e6


def draw_timeline(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Writes the PNG. Raises UnsupportedError without matplotlib, OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            f'plot: wanted matplotlib to draw {os.fspath(path)!r}, found none; `pip install "memsys[plot]"` brings it, '
            "and save() needs nothing"
        ) from error
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)  # no window and no global state
    memory, links = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _draw_memory(memory, timeline)
    _draw_lanes(links, timeline)
    shares = ", ".join(f"{lane} {timeline.busy_share(lane):.0%}" for lane in _used_lanes(timeline) if lane != COMPUTE)
    memory.set_title(f"{timeline.duration_us / _US_PER_S:.2f} s; busy: {shares or 'nothing'}", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def _draw_memory(axes: Any, timeline: Timeline) -> None:
    for tier in TIERS:
        if timeline.peak_bytes(tier) > 0:
            _draw_level(axes, timeline.levels[tier], timeline.duration_us, 0.0, color=_COLOURS[tier], label=tier)
            limit = timeline.limits.get(tier)
            # A budget far above what is used would press the curves flat.
            if limit is not None and limit < 4 * timeline.peak_bytes(tier):
                axes.axhline(limit / _MIB, color=_COLOURS[tier], linestyle="--", linewidth=0.8, label=f"{tier} budget")
    if timeline.planned is not None:
        for tier, changes in timeline.planned.levels.items():
            _draw_level(axes, changes, None, timeline.last_step_us, color=_COLOURS.get(tier), linestyle=":",
                        label=f"{tier}, planned")  # fmt: skip
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", fontsize=8)


def _draw_level(
    axes: Any, changes: Sequence[tuple[float, int]], end_us: float | None, shift_us: float, **style: Any
) -> None:
    times = [(at_us + shift_us) / _US_PER_S for at_us, _ in changes]
    values = [bytes_ / _MIB for _, bytes_ in changes]
    if end_us is not None and times:
        times.append(end_us / _US_PER_S)
        values.append(values[-1])
    axes.plot(times, values, drawstyle="steps-post", linewidth=1.2, **style)


def _used_lanes(timeline: Timeline) -> list[str]:
    planned = timeline.planned.slices if timeline.planned is not None else ()
    used = {slice_.lane for slice_ in (*timeline.slices, *planned)}
    return [lane for lane in LANES if lane in used]


def _draw_lanes(axes: Any, timeline: Timeline) -> None:
    lanes = _used_lanes(timeline)
    is_planned = timeline.planned is not None
    for row, lane in enumerate(reversed(lanes)):
        colour = _COLOURS.get(lane, _COLOURS.get(lane.split()[0], "#555753"))
        height = 0.42 if is_planned else 0.8
        bars = [(s.begin_us / _US_PER_S, (s.end_us - s.begin_us) / _US_PER_S) for s in timeline.lane(lane)]
        # Two tones, so that forward and backward, or one transfer and the next, can be told apart.
        axes.broken_barh(bars, (row, height), facecolors=[colour, _lighter(colour)])
        if is_planned:
            shift_us = timeline.last_step_us
            bars = [((s.begin_us + shift_us) / _US_PER_S, (s.end_us - s.begin_us) / _US_PER_S)
                    for s in timeline.planned.slices if s.lane == lane]  # fmt: skip
            axes.broken_barh(bars, (row - height, height), facecolors="none", edgecolors=colour, linewidth=0.6)
    shift = 0 if is_planned else 0.4
    axes.set_yticks([row + shift for row in range(len(lanes))], list(reversed(lanes)))
    axes.set_ylim(-0.6, len(lanes))
    axes.set_xlabel("seconds; planned as outlines" if is_planned else "seconds")


def _lighter(colour: str) -> str:
    """The colour, halfway to white."""
    parts = [(int(colour[begin : begin + 2], 16) + 255) // 2 for begin in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)
