"""What can be asked of a tensor that has a shape and a type and no bytes: such questions read no file."""

from __future__ import annotations

import torch

_ATTRIBUTES = """
    shape dtype device layout requires_grad grad grad_fn is_leaf ndim is_meta is_cpu is_cuda is_xpu is_mps is_sparse
    is_sparse_csr is_quantized is_mkldnn is_nested nbytes itemsize output_nr retains_grad _version _base _backward_hooks
    _grad _post_accumulate_grad_hooks
"""
_METHODS = """
    size dim numel nelement element_size is_floating_point is_complex is_signed is_inference __len__ __hash__ get_device
    storage_offset untyped_storage requires_grad_ register_hook _is_view is_shared register_post_accumulate_grad_hook
"""


def _all() -> frozenset:
    found = [getattr(torch.Tensor, name) for name in _METHODS.split()]
    for name in _ATTRIBUTES.split():
        attribute = getattr(torch.Tensor, name)
        found += [attribute.__get__, attribute.__set__]
    return frozenset([*found, torch.Tensor.grad.__delete__, torch.is_floating_point, torch.is_complex, torch.numel,
                      torch.is_inference])  # fmt: skip


DESCRIPTIONS = _all()
