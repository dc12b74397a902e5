"""Offloading in the Hugging Face Trainer: a callback that offloads the model while it trains and logs what moved."""

from __future__ import annotations

from typing import Any

import torch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("memsys.integrations.hf needs transformers; pip install transformers accelerate") from error

import memsys
from memsys.errors import InputError


class MemsysCallback(TrainerCallback):
    """Offloads the Trainer's model from the beginning of training to its end.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[MemsysCallback(device_budget="20GiB")])

    Every log gets `memsys_out_bytes`, `memsys_in_bytes` and `memsys_stall_ms`, counted since training began. They are
    in `trainer.state.log_history` and reach the callbacks after this one; a reporter that the Trainer puts before it
    has sent its log by then.

    The Trainer tells callbacks nothing of an exception. `with MemsysCallback() as callback: trainer.train()` restores
    the model then too; without it, the next training or `restore()` does. Until then the model works as ever.

    Args:
        options: the keywords of memsys.offload. Those that make no sense raise when training begins.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._model: torch.nn.Module | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        model = kwargs.get("model")
        if model is None:
            raise InputError("MemsysCallback: the trainer passed no model to on_train_begin; wanted the keyword "
                             "`model`, which transformers.Trainer passes")  # fmt: skip
        self.restore()
        self._model = memsys.offload(model, **self._options)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self._model is None:
            return
        stats = memsys.stats(self._model)
        numbers = {
            "memsys_out_bytes": stats.out_bytes,
            "memsys_in_bytes": stats.in_bytes,
            "memsys_stall_ms": stats.stall_us / 1000,
        }
        # The history already has its own copy of the log.
        for log in (kwargs.get("logs"), state.log_history[-1] if state.log_history else None):
            if log is not None:
                log.update(numbers)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.restore()

    def restore(self) -> None:
        """Undoes the offloading if it is in force."""
        model, self._model = self._model, None
        if model is not None:
            memsys.restore(model)

    def __enter__(self) -> MemsysCallback:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()
