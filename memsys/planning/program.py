"""A linear program as it is written down, and HiGHS that solves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from memsys.errors import UnsupportedError

_INFINITY = math.inf


@dataclass
class Program:
    """Minimise cost · x within bounds and rows; a row is any sum of (variables, factors)."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    _starts: list[int] = field(default_factory=lambda: [0])
    _columns: list[np.ndarray] = field(default_factory=list)
    _factors: list[np.ndarray] = field(default_factory=list)

    def add(self, count: int, upper: float = _INFINITY, cost: float = 0.0, lower: float = 0.0) -> np.ndarray:
        """New variables; returns their numbers."""
        first = len(self.cost)
        self.cost += [cost] * count
        self.lower += [lower] * count
        self.upper += [upper] * count
        return np.arange(first, first + count)

    def row(self, low: float, high: float, *terms: tuple[object, object]) -> None:
        """low <= sum of factors times variables <= high."""
        count = self._starts[-1]
        for columns, factors in terms:
            columns = np.atleast_1d(columns)
            self._columns.append(columns)
            self._factors.append(np.broadcast_to(np.asarray(factors, dtype=float), columns.shape))
            count += len(columns)
        self._starts.append(count)
        self.row_lower.append(low)
        self.row_upper.append(high)

    def solve(self, limit_s: float) -> tuple[float, np.ndarray] | None:
        """The least cost and its x; None if it was not found within the time. Raises UnsupportedError without HiGHS."""
        highspy = import_highs()
        problem = highspy.HighsLp()
        problem.num_col_, problem.num_row_ = len(self.cost), len(self.row_lower)
        problem.col_cost_ = np.array(self.cost)
        problem.col_lower_, problem.col_upper_ = np.array(self.lower), np.array(self.upper)
        problem.row_lower_, problem.row_upper_ = np.array(self.row_lower), np.array(self.row_upper)
        problem.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        problem.a_matrix_.start_ = np.array(self._starts, dtype=np.int32)
        problem.a_matrix_.index_ = np.concatenate(self._columns).astype(np.int32)
        problem.a_matrix_.value_ = np.concatenate(self._factors)
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("time_limit", limit_s)
        highs.passModel(problem)
        highs.run()
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return highs.getInfo().objective_function_value, np.array(highs.getSolution().col_value)


def import_highs() -> object:
    """The module highspy. Raises UnsupportedError, with what to install, where it is missing."""
    try:
        import highspy
    except ImportError:
        raise UnsupportedError('an exact plan needs HiGHS, which is not installed; run pip install "memsys[plan]", or '
                               "leave exact out") from None  # fmt: skip
    return highspy
