"""No plan is faster than this: a relaxation of the schedule that is solved exactly, by hand.

When backward reads its first span, what is alive and not kept within the device budget has left the device, or was
dropped; what has left must come back. So of `need` = alive bytes less the device budget, z bytes are made again, the
cheapest first (a fractional knapsack), and the other need - z cross the links in forward and once more in backward:

    forward  >= max(compute, moving need - z out, compute + what moving holds it up)
    backward >= max(compute + remake(z), moving need - z in, compute + remake(z) + what moving holds it up)

Both sides are convex in z; their sum at the best z bounds every plan. The order of transfers, the window, latency and
what inputs need are left out, each of which only adds time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from memsys.planning.menu import Menu
from memsys.planning.swap_plan import Budgets, Hardware, Link

_MOMENTS = 64  # of forward at which what must have left is looked at
_CUTS = 200


def lower_bound(menu: Menu, hardware: Hardware, budgets: Budgets) -> tuple[float, float]:
    """The step time that no plan within the budgets goes below, infinite where none fits; and how many bytes are best
    made again in the relaxation."""
    trace, turn_us = menu.trace, menu.turn_us
    compute_us = trace.forward_us + trace.backward_us
    alive = np.flatnonzero(menu.saved_us <= turn_us)
    if budgets.device_bytes is None or not len(alive):
        return compute_us, 0.0
    need = int(menu.bytes[alive].sum()) - budgets.device_bytes
    if need <= 0:
        return compute_us, 0.0
    remake = _Remake(menu.bytes[alive], menu.price[alive])
    capacity = _capacity(hardware, budgets)
    least, most = max(0.0, need - capacity), min(float(need), remake.bytes)
    if least > most:
        return math.inf, 0.0
    out, back = _Links(hardware, budgets, "out_rate"), _Links(hardware, budgets, "in_rate")
    needs = _needs(menu, alive, budgets.device_bytes, turn_us)
    start_us, rest_us = float(menu.saved_us[alive].min()), compute_us - turn_us

    def step_us(z: float) -> tuple[float, float]:
        lines = [(turn_us, 0.0)]
        for at_us, bytes_ in needs:
            us, slope = out.moving_us(bytes_ - z)
            lines.append((start_us + us + turn_us - at_us, slope))
        us, slope = out.holding_us(need - z)
        lines.append((turn_us + us, slope))
        forward = max(lines)
        remake_us, price = remake.cost_us(z)
        moving_us, moving_slope = back.moving_us(need - z)
        holding_us, holding_slope = back.holding_us(need - z)
        backward = max((rest_us + remake_us + holding_us, price + holding_slope), (moving_us, moving_slope))
        return forward[0] + backward[0], forward[1] + backward[1]

    bound_us, z = _least(step_us, least, most)
    return max(compute_us, bound_us), z


def _needs(menu: Menu, alive: np.ndarray, device_bytes: int, turn_us: float) -> list[tuple[float, float]]:
    """(moment, bytes that must have left or been dropped by then), at some moments of forward up to its end."""
    order = alive[np.argsort(menu.saved_us[alive], kind="stable")]
    saved_us = menu.saved_us[order]
    needs = np.cumsum(menu.bytes[order]) - device_bytes
    last_of_moment = np.append(np.flatnonzero(np.diff(saved_us) > 0), len(order) - 1)
    chosen = last_of_moment[np.unique(np.linspace(0, len(last_of_moment) - 1, _MOMENTS).astype(int))]
    found = [(float(saved_us[i]), float(needs[i])) for i in chosen if needs[i] > 0]
    return found or [(turn_us, 0.0)]


def _capacity(hardware: Hardware, budgets: Budgets) -> float:
    tiers = ((hardware.host, budgets.host_bytes), (hardware.file, budgets.file_bytes))
    return sum((math.inf if limit is None else limit) for link, limit in tiers if link is not None)


class _Remake:
    """The least time to make z bytes again: the cheapest first, any share of a span."""

    def __init__(self, bytes_: np.ndarray, price: np.ndarray) -> None:
        order = np.argsort(price, kind="stable")
        order = order[price[order] < np.inf]
        self._price = price[order]
        self._until = np.concatenate(([0.0], np.cumsum(bytes_[order], dtype=float)))
        self._cost_us = np.concatenate(([0.0], np.cumsum(bytes_[order] * self._price)))
        self.bytes = float(self._until[-1])

    def cost_us(self, z: float) -> tuple[float, float]:
        """The cost, and its slope (to the right)."""
        if not len(self._price):
            return 0.0, 0.0
        place = min(int(np.searchsorted(self._until, z, side="right")) - 1, len(self._price) - 1)
        price = float(self._price[place])
        return float(self._cost_us[place]) + (z - float(self._until[place])) * price, price


class _Links:
    """All links in one direction, side by side: the least time in which some bytes can cross, each within what its
    tier holds; and the least that this holds compute up."""

    def __init__(self, hardware: Hardware, budgets: Budgets, direction: str) -> None:
        pairs = ((hardware.host, budgets.host_bytes), (hardware.file, budgets.file_bytes))
        found = [(link, math.inf if limit is None else limit) for link, limit in pairs if link is not None]
        self._moving = _lines([(getattr(link, direction), limit) for link, limit in found])
        self._holding = _lines([(_holding_rate(link, direction), limit) for link, limit in found])

    def moving_us(self, bytes_: float) -> tuple[float, float]:
        """The time to move bytes_, and its slope by bytes that are not moved."""
        return _most(self._moving, bytes_)

    def holding_us(self, bytes_: float) -> tuple[float, float]:
        return _most(self._holding, bytes_)


def _holding_rate(link: Link, direction: str) -> float:
    return getattr(link, direction) / link.slowdown if link.slowdown else math.inf


def _lines(tiers: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(bytes beyond which a line counts, bytes a microsecond on it): with all tiers, or past what one of them holds."""
    lines = [(0.0, sum(rate for rate, _ in tiers) / 1e6)]
    for place, (_, limit) in enumerate(tiers):
        others = sum(rate for other, (rate, _) in enumerate(tiers) if other != place)
        if limit < math.inf and others > 0:
            lines.append((limit, others / 1e6))
    return [line for line in lines if 0 < line[1] < math.inf]


def _most(lines: list[tuple[float, float]], bytes_: float) -> tuple[float, float]:
    found = (0.0, 0.0)
    for beyond, rate in lines:
        found = max(found, ((bytes_ - beyond) / rate, -1.0 / rate))
    return found


def _least(f: Callable[[float], tuple[float, float]], low: float, high: float) -> tuple[float, float]:
    """The least value of a convex function of (value, slope) between low and high, from below, by its tangents; and
    about where it is."""
    (low_value, low_slope), (high_value, high_slope) = f(low), f(high)
    if low_slope >= 0 or low == high:
        return low_value, low
    if high_slope <= 0:
        return high_value, high
    for _ in range(_CUTS):
        z = (high_value - low_value + low_slope * low - high_slope * high) / (low_slope - high_slope)
        z = min(max(z, low), high)
        cut = low_value + low_slope * (z - low)
        value, slope = f(z)
        if value <= cut + 1e-9 * abs(cut) or z in (low, high):
            break
        if slope < 0:
            low, low_value, low_slope = z, value, slope
        else:
            high, high_value, high_slope = z, value, slope
    return cut, z
