"""The row segments of a session: opens one for each call of a block, and answers for the tensors saved in it."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING

import torch

from memsys import _tensor
from memsys.activations.dispatcher import Claimant, innermost_claimants
from memsys.activations.rows.call import RowCall
from memsys.activations.rows.mark import row_blocks
from memsys.activations.rows.offer import CallFacts

if TYPE_CHECKING:
    from memsys.activations.recorder import StepRecorder

logger = logging.getLogger("memsys")


class PackCounter:
    """Sees every saved tensor before anybody claims it, so that the n-th of a forward is the n-th of a re-run."""

    stage = -1
    in_backward = False

    def __init__(self, book: RowBook) -> None:
        self.book = book

    def claim(self, tensor: torch.Tensor) -> None:
        call = self.book.current()
        if call is not None:
            call.count(tensor)


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.calls: list[tuple[int, RowCall | None]] = []
        self.facts: list[CallFacts] = []
        self.recorder: StepRecorder | None = None


class RowBook:
    """One session's. `is_wanted`: a policy has asked for rows, so that blocks are tried; until then a call of a block
    costs next to nothing. `is_measured`: runs are timed as well, as a plan needs it."""

    def __init__(self, model: torch.nn.Module | None) -> None:
        self.is_wanted = False
        self.is_measured = False
        self._state = _ThreadState()
        self._said: set[tuple[str, str]] = set()
        self._hooks = []
        for block in row_blocks(model) if model is not None else ():
            self._hooks.append(block.register_forward_pre_hook(_Opening(self), with_kwargs=True))
            self._hooks.append(block.register_forward_hook(_Closing(self), always_call=True))

    @property
    def facts(self) -> list[CallFacts]:
        """The calls of this thread's last forward."""
        return self._state.facts

    def begin_forward(self, recorder: StepRecorder | None = None) -> tuple[Claimant, ...]:
        """Who counts in it, if anything is to be counted."""
        self._state.facts, self._state.recorder = [], recorder
        return (PackCounter(self),) if self.is_wanted else ()

    def current(self) -> RowCall | None:
        """The innermost call that may be a segment, if this thread is in one."""
        calls = self._state.calls
        return calls[-1][1] if calls else None

    def want(self) -> None:
        """A policy chose ROWS."""
        self.is_wanted = True

    def open(self, block: torch.nn.Module, args: tuple, kwargs: dict, is_last: bool) -> None:
        """A block's forward begins; `is_last`: these are the arguments that it gets."""
        calls = self._state.calls
        call = self._call(block, args, kwargs, is_last) if self._may_open() else None
        calls.append((id(block), call if call is not None else self.current()))

    def close(self, block: torch.nn.Module, is_whole: bool) -> None:
        calls = self._state.calls
        if not calls or calls[-1][0] != id(block):
            return  # another hook failed before ours was called
        _, call = calls.pop()
        if call is not None and call is not self.current() and is_whole:
            call.check_complete()

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _may_open(self) -> bool:
        found = self.current()
        if found is not None and found.profile is not None:
            return False  # part of a call that is a segment itself
        return torch.is_grad_enabled()

    def _call(self, block: torch.nn.Module, args: tuple, kwargs: dict, is_last: bool) -> RowCall:
        facts = CallFacts(len(self.facts), type(block).__name__, 0, None, None, [])
        call = RowCall(block, facts)
        # Nobody of ours counts in a forward that began before rows were wanted, nor where somebody else's hooks are
        # innermost: a checkpoint's, or those of a trial.
        if self.is_wanted and any(getattr(claimant, "book", None) is self for claimant in innermost_claimants()):
            recorder = self._state.recorder
            if recorder is not None:
                recorder.pause()  # a trial is no part of the step
            try:
                call.judge(args, kwargs, is_last, self.is_measured)
            finally:
                if recorder is not None:
                    recorder.resume()
        self.facts.append(facts)
        if facts.declined is not None and (facts.block, facts.declined) not in self._said:
            self._said.add((facts.block, facts.declined))
            logger.warning("saved tensors of %s are not divided by rows: %s", facts.block, facts.declined)
        return call


class _Hook:
    """Before or after a block's forward. It is copied with the module, whose copy goes on in the same session; a model
    from a pickle is not offloaded."""

    def __init__(self, book: RowBook | None) -> None:
        self._book = weakref.ref(book) if book is not None else lambda: None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (None,)

    def __deepcopy__(self, _: object) -> _Hook:
        return self


class _Opening(_Hook):
    def __call__(self, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        book = self._book()
        if book is not None and not torch.compiler.is_compiling():
            book.open(block, args, kwargs, _tensor.last_pre_hook(block) is self)


class _Closing(_Hook):
    def __call__(self, block: torch.nn.Module, _: tuple, output: object) -> None:
        book = self._book()
        if book is not None and not torch.compiler.is_compiling():
            book.close(block, is_whole=output is not None)
