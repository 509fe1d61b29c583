"""The words a bundle may use: types, and the operations that are pure functions of their operands.

A row each way: what is not in these tables is neither written nor read. A list of what is allowed, not of what is
forbidden: ATen has operations that read files, draw random numbers or trust pointers they are given.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from spikezip.errors import BundleError

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16, torch.float16, torch.float32, torch.float64,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
        torch.complex64, torch.complex128,
    )
}  # fmt: skip

#: safetensors' names of the same types; complex numbers are stored as pairs.
STORED_DTYPES = {"BF16", "F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL"}

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    str(form).removeprefix("torch."): form
    for form in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}

#: Arithmetic on sizes, and picking one of several results. Operands are whole numbers (see trial.py).
FUNCTIONS: dict[str, Callable] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg")
}
_FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}

#: ATen operations beside those that torch itself tags as core or pointwise.
_MORE_BY_KIND = {
    "layers": (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mv dot baddbmm"
        " addbmm addmv einsum bilinear tensordot inner outer scaled_dot_product_attention softmax log_softmax"
        " _safe_softmax logsumexp layer_norm group_norm instance_norm rms_norm batch_norm _fused_rms_norm"
        " native_channel_shuffle cdist pairwise_distance cosine_similarity vdot linalg_vecdot cross linalg_cross"
    ),
    "activations": ("hardswish prelu _prelu_kernel glu log_sigmoid selu celu mish relu6"),
    "pooling and resizing": (
        "max_pool1d max_pool2d max_pool3d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d"
        " adaptive_max_pool2d adaptive_max_pool3d upsample_linear1d upsample_nearest1d upsample_nearest3d"
        " upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
        " _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d grid_sampler"
        " grid_sampler_3d affine_grid_generator max_pool1d_with_indices max_unpool2d max_unpool3d"
    ),
    "moving values about": (
        "_unsafe_view reshape reshape_as view_as flatten unflatten transpose t swapaxes swapdims movedim moveaxis"
        " narrow expand_as broadcast_to stack hstack vstack concat split chunk unbind pad roll rot90 tile"
        " channel_shuffle pixel_shuffle pixel_unshuffle im2col unfold fliplr flipud tril triu diag_embed"
        " take_along_dim type_as to contiguous clone detach alias ravel repeat_interleave index_add index_copy"
        " fill index_fill index_reduce take diag diagflat diagonal_scatter block_diag meshgrid broadcast_tensors"
        " unsafe_split dstack column_stack sum_to_size"
    ),
    "constants": (
        "zeros ones eye linspace logspace zeros_like ones_like new_zeros new_ones new_full tril_indices triu_indices"
        " hann_window hamming_window fft_fftfreq fft_rfftfreq"
    ),
    "reductions": (
        "std std_mean var_mean all norm linalg_norm linalg_vector_norm linalg_matrix_norm renorm cumprod cummax cummin"
        " logcumsumexp aminmax nansum nanmean count_nonzero diff trapezoid trapz cumulative_trapezoid"
    ),
    "order": ("median nanmedian quantile nanquantile kthvalue mode argsort msort bucketize searchsorted isin"),
    "matrices": ("linalg_det linalg_slogdet linalg_inv linalg_solve linalg_cholesky matrix_exp"),
    "distances of answers": (
        "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits"
        " cross_entropy_loss"
    ),
    "complex numbers and spectra": (
        "complex polar view_as_complex view_as_real real imag angle conj _conj conj_physical resolve_conj"
        " fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn"
        " fft_irfftn fft_fftshift fft_ifftshift fft_hfft fft_ihfft stft"
    ),
    "other names of the same": (
        "subtract multiply divide floor_divide greater greater_equal less less_equal not_equal isclose"
        " __and__ __or__ __xor__ absolute negative fix arctan2 arcsinh special_softmax special_log_softmax"
        " special_expit special_erf special_log1p special_ndtr"
    ),
}
_MORE = {name for names in _MORE_BY_KIND.values() for name in names.split()}
#: Tagged core or pointwise, and yet not wanted: uninitialised memory, training, views of raw memory.
_FEWER = {
    "empty", "empty_strided", "as_strided", "equal", "_local_scalar_dense", "_embedding_bag",
    "_native_batch_norm_legit", "copy", "sym_storage_offset", "sym_is_contiguous",
}  # fmt: skip
_OVERLOAD = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")


def target_name(target: Any) -> str:
    """How a bundle names the function of a call_function node; BundleError if it has no name there."""
    if isinstance(target, torch._ops.OpOverload):
        if not _allowed(target):
            raise BundleError(
                f"the operation {target} is not one of those a bundle may hold. Write this part of forward with "
                "commoner operations, and convert the model anew"
            )
        return str(target)
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise BundleError(f"the function {getattr(target, '__name__', target)!r} is not one of those a bundle may hold")


def target_named(name: str) -> Callable:
    """The inverse of :func:`target_name`."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    match = _OVERLOAD.fullmatch(name)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    if match and isinstance(packet, torch._ops.OpOverloadPacket) and match[2] in packet.overloads():
        overload = getattr(packet, match[2])
        if isinstance(overload, torch._ops.OpOverload) and _allowed(overload):
            return overload
    raise BundleError(
        f"the operation {name[:80]!r} is not one of those a bundle may hold. If a newer spikezip wrote it, upgrade"
    )


def _allowed(op: torch._ops.OpOverload) -> bool:
    schema = op._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or schema.is_mutable or name in _FEWER or "backward" in name:
        return False
    if name not in _MORE and not _tagged(name):
        return False
    # TorchScript shares the namespace: its own operations (on files, strings, ...) have no kernel.
    overload = f".{schema.overload_name}" if schema.overload_name else ""
    return torch._C._dispatch_has_kernel(schema.name + overload)


@functools.cache
def _tagged(name: str) -> bool:
    """Whether torch tags any form of the operation as core or pointwise (it does not tag each of them)."""
    packet = getattr(torch.ops.aten, name)
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return torch.Tag.core in tags or torch.Tag.pointwise in tags
