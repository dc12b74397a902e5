"""Optimizers that touch only the rows that a step used, table and state alike, so that an embedding table larger than
device memory can be trained. Each is torch.optim's of the same name on the rows of a sparse gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from memsys.errors import InputError
from memsys.features.table import HostTable


class _RowOptimizer:
    """Steps through the tables that have a gradient. State is made at a table's first step: tensors of its shape."""

    state_names: tuple[str, ...] = ()
    hyperparameters: tuple[str, ...] = ("lr",)

    def __init__(self, tables: HostTable | Iterable[HostTable], lr: float) -> None:
        if not lr >= 0:
            raise InputError(f"lr: wanted a number of at least 0, found {lr!r}; try 1e-3")
        self.tables = [tables] if isinstance(tables, HostTable) else list(tables)
        self.lr = lr
        self.state: list[dict[str, torch.Tensor]] = [{} for _ in self.tables]
        self.step_counts = [0] * len(self.tables)

    @torch.no_grad()
    def step(self) -> None:
        """Updates the rows that have a gradient; does not forget it (zero_grad does)."""
        for which, table in enumerate(self.tables):
            index, gradient = table.grad_rows()
            if index.numel() == 0:
                continue
            state = self.state[which]
            for name in self.state_names:
                if name not in state:
                    state[name] = torch.zeros(table.shape, dtype=table.dtype)
            self.step_counts[which] += 1
            used = {name: state[name][index] for name in self.state_names}
            rows = table.gather(index)
            self._update(rows, gradient, used, self.step_counts[which])
            table.tensor[index] = rows
            for name, values in used.items():
                state[name][index] = values

    def zero_grad(self) -> None:
        """Forgets every table's gradient."""
        for table in self.tables:
            table.zero_grad()

    def state_dict(self) -> dict[str, object]:
        """What load_state_dict takes; the tensors are the optimizer's own, not copies."""
        settings = {name: getattr(self, name) for name in self.hyperparameters}
        return {
            "hyperparameters": settings,
            "step_counts": list(self.step_counts),
            "state": [dict(one) for one in self.state],
        }

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """Raises InputError where the number of tables, shapes, dtypes or the kind differ; nothing is changed then."""
        states = saved["state"]
        if not len(states) == len(saved["step_counts"]) == len(self.tables):
            raise InputError(
                f"state_dict: wanted {len(self.tables)} tables, found {len(states)}; load the matching one"
            )
        for table, state, step_count in zip(self.tables, states, saved["step_counts"], strict=True):
            if set(state) != set(self.state_names if step_count else ()):
                raise InputError(f"state_dict: wanted {list(self.state_names)} of each table that was stepped, found "
                                 f"{list(state)}; load one of {type(self).__name__}")  # fmt: skip
            for name, values in state.items():
                if values.shape != table.shape or values.dtype is not table.dtype:
                    raise InputError(f"state_dict: wanted {name} of {table.dtype} and shape {list(table.shape)}, found "
                                     f"{values.dtype} and {list(values.shape)}; load the matching one")  # fmt: skip
        state = [{name: values.cpu().clone() for name, values in one.items()} for one in states]
        for name in self.hyperparameters:
            setattr(self, name, saved["hyperparameters"][name])
        self.state, self.step_counts = state, list(saved["step_counts"])

    def _update(self, rows: torch.Tensor, gradient: torch.Tensor, used: dict[str, torch.Tensor], step: int) -> None:
        raise NotImplementedError


class RowSGD(_RowOptimizer):
    """row -= lr * gradient."""

    def _update(self, rows: torch.Tensor, gradient: torch.Tensor, used: dict[str, torch.Tensor], step: int) -> None:
        rows.add_(gradient, alpha=-self.lr)


class RowAdagrad(_RowOptimizer):
    """Adagrad (Duchi et al., 2011), element by element."""

    state_names = ("sum",)
    hyperparameters = ("lr", "eps")

    def __init__(self, tables: HostTable | Iterable[HostTable], lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(tables, lr)
        self.eps = eps

    def _update(self, rows: torch.Tensor, gradient: torch.Tensor, used: dict[str, torch.Tensor], step: int) -> None:
        used["sum"].addcmul_(gradient, gradient)
        rows.addcdiv_(gradient, used["sum"].sqrt().add_(self.eps), value=-self.lr)


class RowAdam(_RowOptimizer):
    """Adam (Kingma and Ba, 2015) on the rows used, as torch.optim.SparseAdam: the moments of others stay as they are,
    and the bias correction counts the steps in which the table had a gradient."""

    state_names = ("exp_avg", "exp_avg_sq")
    hyperparameters = ("lr", "betas", "eps")

    def __init__(
        self,
        tables: HostTable | Iterable[HostTable],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(tables, lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas: wanted two numbers from 0 to below 1, found {betas!r}; try (0.9, 0.999)")
        self.betas, self.eps = betas, eps

    def _update(self, rows: torch.Tensor, gradient: torch.Tensor, used: dict[str, torch.Tensor], step: int) -> None:
        first, second = self.betas
        used["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        used["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = self.lr * math.sqrt(1 - second**step) / (1 - first**step)
        rows.addcdiv_(used["exp_avg"], used["exp_avg_sq"].sqrt().add_(self.eps), value=-size)
