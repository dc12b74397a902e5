"""A streamed weight between visits: its shape and type, and no bytes. Whoever computes with it all the same gets its
numbers from the file; whoever writes to it gets an error. Otherwise a read outside of the block's forward (a checkpoint
that computes a part of it again, an adapter that looks at its base) would quietly go on with what is not the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from memsys import _tensor
from memsys.errors import InPlaceError, UnsupportedError
from memsys.weights.descriptions import DESCRIPTIONS
from memsys.weights.file_tensor import FileTensor, is_in_place

if TYPE_CHECKING:
    from memsys.weights.blocks import StreamedWeight
    from memsys.weights.session import StreamSession

_REMEDY = "it is frozen and lies in a file; train an adapter, or call memsys.restore(model) first"
_SAME = frozenset({torch.Tensor.detach, torch.Tensor.data.__get__})


class Home:
    """Where an absent weight is: its session, its block, and its name in the file."""

    __slots__ = ("index", "session", "weight")

    def __init__(self, session: StreamSession, index: int, weight: StreamedWeight) -> None:
        self.session, self.index, self.weight = session, index, weight


class AwayParameter(torch.nn.Parameter):
    """The class of a parameter while it is away; `memsys_home` says where."""

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function in DESCRIPTIONS:
            return _tensor.untouched(function, args, kwargs)
        first = args[0] if args else None
        if isinstance(first, AwayParameter):
            if function in _SAME:
                return first.from_file()
            if function is torch.Tensor.stride:
                return torch.empty(first.shape, device="meta").stride(*args[1:], **kwargs)
            if function is torch.Tensor.is_contiguous:
                return True
            if function is torch.Tensor.data.__set__ and args[1] is first:
                return None
            if is_in_place(function):
                raise InPlaceError(f"{first.memsys_home.weight.name}: a streamed weight can't be written to: {_REMEDY}")
        if isinstance(kwargs.get("out"), AwayParameter):
            raise InPlaceError(
                f"{kwargs['out'].memsys_home.weight.name}: a streamed weight can't be an output: {_REMEDY}"
            )
        return function(*_tensor.map_leaves(_present, args), **_tensor.map_leaves(_present, kwargs))

    def from_file(self) -> FileTensor:
        """The weight as something that is read when its numbers are wanted."""
        home = self.memsys_home
        return FileTensor(self, lambda: home.session.read(home.weight.name))

    def __deepcopy__(self, memo: dict) -> object:
        raise self._no_copy("copied")

    def __reduce_ex__(self, protocol: int) -> object:
        raise self._no_copy("pickled")

    def _no_copy(self, what: str) -> UnsupportedError:
        name = self.memsys_home.weight.name
        return UnsupportedError(f"{name}: a model with streamed weights can't be {what}, since these are in a file; "
                                "use model.state_dict(), or call memsys.restore(model) first")  # fmt: skip


def _refuse(parameter: AwayParameter) -> None:
    raise InPlaceError(f"{parameter.memsys_home.weight.name}: a streamed weight can't be written to: {_REMEDY}")


def _present(value: object) -> object:
    """The weight itself, in place while backward is about its block, or as a tensor of its own."""
    if not isinstance(value, AwayParameter):
        return value
    home = value.memsys_home
    if _tensor.in_backward():
        home.session.hold(home.index)
        return value  # the same object, which is there now
    return home.session.read(home.weight.name)
