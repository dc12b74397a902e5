"""The one file that knows torch's insides: addresses, storages, versions, streams, and tensors over foreign bytes.

Everything private to torch that memsys needs is here, behind a function with a plain meaning.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, is_traceable_wrapper_subclass

_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})
# Operations whose result shares its input's storage, by the names autograd gives them: how a weight reaches a hook.
_VIEW_NODES = ("TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "UnsafeViewBackward0",
               "ExpandBackward0", "SelectBackward0", "SliceBackward0", "UnsqueezeBackward0", "SqueezeBackward1",
               "AsStridedBackward0", "ReshapeAliasBackward0", "AliasBackward0", "DetachBackward0")  # fmt: skip
# A context that sees every operation, and the types of operations.
DispatchMode = TorchDispatchMode
OPERATIONS = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
# Functions that hand out a tensor's bytes, to be compared with.
STORAGE_METHOD, ADDRESS_METHOD = torch.Tensor.untyped_storage, torch.Tensor.data_ptr
_CAST_NODE = "ToCopyBackward0"
_CHAIN_LIMIT = 6
_AUTOCAST_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


class Layout(NamedTuple):
    """How a tensor lies in its storage; `offset` counts elements from the start of the bytes that were moved."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    is_conj: bool
    is_neg: bool


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of the tensor are the tensor: strided, no subclass, no quantizer, a storage of its own."""
    return type(tensor) in _PLAIN_TYPES and tensor.layout is torch.strided and not tensor.is_quantized


def is_small(tensor: torch.Tensor, min_bytes: int) -> bool:
    """Whether this is a tensor of its own bytes, and fewer of them than `min_bytes`."""
    return type(tensor) in _PLAIN_TYPES and tensor.layout is torch.strided and tensor.nbytes < min_bytes


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a subclass that says by `__tensor_flatten__` which tensors it is made of."""
    return type(tensor) not in _PLAIN_TYPES and is_traceable_wrapper_subclass(tensor)


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """The tensor's storage: one Python object for as long as the storage lives, so that `is` and weakrefs work."""
    return tensor.untyped_storage()


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number for dictionaries; reused after the storage's death, so compare the storage itself too."""
    return storage._cdata


def address_of(storage: torch.UntypedStorage) -> int:
    return storage.data_ptr()


def span_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Half-open range of storage bytes from the tensor's first to its last element."""
    item_bytes = tensor.element_size()
    begin = tensor.storage_offset() * item_bytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * item_bytes


def extent_of(tensor: torch.Tensor) -> int:
    """Bytes from the tensor's first to its last element."""
    if tensor.is_contiguous():
        return tensor.nbytes
    begin, end = span_of(tensor)
    return end - begin


def layout_of(tensor: torch.Tensor, begin_bytes: int) -> Layout:
    """The layout relative to byte `begin_bytes` of the storage, which is a multiple of the element size."""
    offset = tensor.storage_offset() - begin_bytes // tensor.element_size()
    return Layout(tensor.dtype, tensor.shape, tensor.stride(), offset, tensor.is_conj(), tensor.is_neg())


def restore(storage: torch.UntypedStorage, layout: Layout) -> torch.Tensor:
    """The tensor that `layout` describes, over `storage`."""
    tensor = torch.empty(0, dtype=layout.dtype, device=storage.device)
    tensor.set_(storage, layout.offset, layout.size, layout.stride)
    tensor = torch._conj(tensor) if layout.is_conj else tensor
    return torch._neg_view(tensor) if layout.is_neg else tensor


def pointer_of(tensor: torch.Tensor) -> int:
    """The address of the tensor's first element."""
    return tensor.data_ptr()


def tensor_over(buffer: object, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A contiguous CPU tensor over a buffer-protocol object, which it keeps alive."""
    return torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).resize_(shape)


def storage_over(buffer: object) -> torch.UntypedStorage:
    """A CPU storage over a buffer-protocol object, which it keeps alive."""
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def bytes_over(storage: torch.UntypedStorage) -> torch.Tensor:
    """The storage's bytes, as a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def become(target: torch.Tensor, value: torch.Tensor) -> None:
    """Gives a parameter on the meta device the bytes of `value`; it stays the object that others hold."""
    is_grad = target.requires_grad and (value.is_floating_point() or value.is_complex())
    fresh = torch.nn.Parameter(value, requires_grad=is_grad)
    fresh.__dict__.update(target.__dict__)
    torch.utils.swap_tensors(target, fresh)


def description_of(kind: type[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """A tensor of a subclass that has the shape, dtype and device of `like`, and no bytes."""
    return torch.Tensor._make_wrapper_subclass(kind, like.shape, dtype=like.dtype, device=like.device)


def untouched(function: Callable, args: tuple, kwargs: dict) -> object:
    """Calls a torch function as if none of its arguments were of a subclass that overrides it."""
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Has `function` called when the backward that this thread is running ends well."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def map_leaves(function: Callable[[object], object], values: object) -> object:
    """The nested tuples, lists and dictionaries of `values`, with `function` applied to what is in them."""
    return torch.utils._pytree.tree_map(function, values)


def maker_of(tensor: torch.Tensor) -> str:
    """The name of the autograd node that made the tensor, or what it is a view of; "" if none did."""
    made = tensor._base if tensor._is_view() else tensor
    node = None if made is None else made.grad_fn
    return "" if node is None else node.name()


def whole_result(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor that an operation returned as its first result, unchanged since, and of which `tensor` is all or a
    view; None if it does not fill its storage exactly."""
    result = tensor._base if tensor._is_view() else tensor
    if result is None or result.is_inference() or result._version != 0 or result.output_nr != 0:
        return None
    if result.storage_offset() != 0 or result.numel() * result.element_size() != result.untyped_storage().nbytes():
        return None
    return result if torch._debug_has_internal_overlap(result) == 0 else None


def is_backed(tensor: torch.Tensor) -> bool:
    """Whether the tensor's storage holds all its elements: a sharded parameter's is emptied between uses."""
    begin = tensor.storage_offset() * tensor.element_size()
    return begin + extent_of(tensor) <= tensor.untyped_storage().nbytes()


def packed_by(node: object, name: str) -> object:
    """What the pack hook returned for the tensor that an autograd node saved under `name`; None without a hook."""
    return getattr(getattr(node, "_raw_saved_" + name, None), "data", None)


def last_pre_hook(module: torch.nn.Module) -> object:
    """The hook that sees the arguments as the module's forward gets them."""
    return next(reversed(module._forward_pre_hooks.values()), None)


def version_of(tensor: torch.Tensor) -> int:
    """Counts in-place changes; -1 where torch does not count them (inference tensors)."""
    return -1 if tensor.is_inference() else tensor._version


def note_written(tensor: torch.Tensor) -> None:
    """Tells autograd that the tensor's bytes changed: a graph that saved it then refuses to run backward."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def anchor_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of no bytes that shares the version counter of `tensor` and none of its memory."""
    anchor = tensor.detach()
    if not tensor.is_inference():
        anchor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return anchor


@contextmanager
def under_autograd() -> Iterator[None]:
    """For a dispatch mode's own work: no mode sees it, and views share version counters with their bases, which they
    otherwise do not at that depth."""
    with _disable_current_modes(), torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        yield


def is_sole_owner(storage: torch.UntypedStorage, reference_count: int) -> bool:
    """Whether nobody but the caller can reach the bytes of a CPU storage.

    `reference_count` is what sys.getrefcount tells the caller when it holds the only reference; torch counts one
    owner; and the memory is torch's own (not numpy's, shared or mapped from a file) and not pinned: a GPU would go on
    using the pages that the process gave up.
    """
    if sys.getrefcount(storage) > reference_count + 1 or torch._C._storage_Use_Count(storage._cdata) > 1:
        return False
    if storage.device.type != "cpu" or not storage.resizable() or storage.is_shared():
        return False
    return not (torch.cuda.is_initialized() and storage.is_pinned())


@functools.cache
def thread_pool_address() -> int:
    """The address of GOMP_parallel in the OpenMP library that torch's own loops run on; 0 where it runs on another."""
    if "OpenMP" not in torch.__config__.parallel_info():
        return 0
    home = os.path.dirname(torch.__file__)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    own = sorted(path for path in paths if path.startswith((home, f"{home}.libs"))) or sorted(paths)
    if len(own) != 1:
        return 0  # none, or several of which torch's can't be told
    library = ctypes.CDLL(own[0])
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0


def in_backward() -> bool:
    """Whether this thread is running a backward pass just now."""
    return torch._C._current_graph_task_id() != -1


def closed_to_compilers(reason: str) -> Callable[[Callable], Callable]:
    """Marks a function that torch.compile may not trace, as torch.compiler.disable does, but without importing the
    compiler, which takes seconds and memory from those who do not compile."""

    def mark(function: Callable) -> Callable:
        function._torchdynamo_disable = True
        function._torchdynamo_disable_msg = reason
        return function

    return mark


def uncompiled(function: Callable) -> Callable:
    """The function, run without torch.compile looking into what it calls; itself while no compiler is loaded."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function


_disabled = functools.cache(torch.compiler.disable)


def in_functorch() -> bool:
    """Whether a torch.func transform is active, under which torch refuses saved-tensor hooks."""
    return torch._C._are_functorch_transforms_active()


def top_hooks() -> object:
    """The innermost pair of saved-tensor hooks of this thread, or None."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def pop_hooks() -> None:
    """Closes the innermost pair of saved-tensor hooks of this thread."""
    torch._C._autograd._pop_saved_tensors_default_hooks()


def leaf_behind(tensor: torch.Tensor) -> torch.Tensor | None:
    """The leaf that `tensor` is a view of, followed through autograd's graph; None if it is computed."""
    node, _ = _walk(tensor.grad_fn, _VIEW_NODES)
    return getattr(node, "variable", None)


def cast_parameter(tensor: torch.Tensor) -> torch.Tensor | None:
    """The leaf of which `tensor` is autocast's cached low-precision copy (or a view of that copy), else None.

    Such copies outlive the forward in autocast's cache: moving them would free nothing.
    """
    # An operation under autocast runs with autocast itself switched off, so "is it enabled" would say no in a hook.
    key = _AUTOCAST_KEYS.get(tensor.device.type)
    if key is None or not torch._C._dispatch_tls_is_dispatch_key_excluded(key):
        return None
    node, _ = _walk(tensor.grad_fn, _VIEW_NODES)
    if node is None or node.name() != _CAST_NODE:
        return None
    return getattr(node.next_functions[0][0], "variable", None)


def _walk(node: object, through: tuple[str, ...]) -> tuple[object, int]:
    steps = 0
    while node is not None and steps < _CHAIN_LIMIT and node.name() in through:
        node = node.next_functions[0][0]
        steps += 1
    return node, steps


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that holds the bytes: a DTensor's local shard, else the tensor itself."""
    return getattr(tensor, "_local_tensor", tensor)


def leaves_of(output: object) -> list[object]:
    """The values in nested tuples, lists, dictionaries and registered output classes."""
    return torch.utils._pytree.tree_leaves(output)


class CpuBackend:
    """torch on the CPU: one synchronous stream; restored tensors live in the store's own memory."""

    owns_targets = False

    def current_stream(self) -> int:
        return 0

    def note_use(self, address: int, bytes_: int, write: bool) -> None: ...

    def note_free(self, address: int, bytes_: int) -> None: ...

    def note_user(self, storage: torch.UntypedStorage) -> None: ...


class CudaBackend(CpuBackend):
    """torch on one CUDA device: streams are asked for at each call, targets come from torch's allocator."""

    owns_targets = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def current_stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def empty(self, bytes_: int) -> torch.UntypedStorage:
        return torch.empty(bytes_, dtype=torch.uint8, device=self.device).untyped_storage()

    def note_user(self, storage: torch.UntypedStorage) -> None:
        # Does nothing where the current stream is the block's own.
        bytes_over(storage).record_stream(torch.cuda.current_stream(self.device))


def wait_for(event: torch.cuda.Event, device: torch.device) -> None:
    """Later work of the device's current stream starts after the event."""
    torch.cuda.current_stream(device).wait_event(event)


def follow(stream: torch.cuda.Stream, device: torch.device) -> None:
    """Later work of `stream` starts after what the device's current stream has done so far."""
    stream.wait_stream(torch.cuda.current_stream(device))


class SimulatedBackend:
    """CPU tensors as if they lived on an accelerator: every use is told to the simulation, which checks its edges."""

    owns_targets = True

    def __init__(self, runtime: object, uses: tuple[object, object]) -> None:
        self._runtime, (self._read, self._write), self.stream = runtime, uses, 0

    def current_stream(self) -> int:
        return self.stream

    def empty(self, bytes_: int) -> torch.UntypedStorage:
        address = self._runtime.allocate(bytes_, self.stream)
        array = (ctypes.c_ubyte * bytes_).from_address(address)
        weakref.finalize(array, self._runtime.free, address, bytes_, self.stream)
        return storage_over(array)

    def note_use(self, address: int, bytes_: int, write: bool) -> None:
        self._runtime.note_use(address, bytes_, self.stream, self._write if write else self._read)

    def note_free(self, address: int, bytes_: int) -> None:
        self._runtime.note_free(address, bytes_, self.stream)

    def note_user(self, storage: torch.UntypedStorage) -> None:
        self._runtime.note_user(address_of(storage), self.stream)


Backend = CpuBackend | CudaBackend | SimulatedBackend


def backend_for(device: torch.device) -> Backend:
    """The backend of a torch device."""
    return CudaBackend(device) if device.type == "cuda" else CpuBackend()
