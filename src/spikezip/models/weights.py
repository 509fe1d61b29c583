"""Weights from safetensors files, checked name by name before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from spikezip.errors import BundleError

_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".th", ".tar"}


def load_weights(module: nn.Module, path: str | PathLike[str], *, new_classes: int | None = None) -> bool:
    """Load a ``.safetensors`` file into a module, in place; every name and shape must agree.

    Args:
        module: where the weights go; untouched if anything is wrong.
        path: a file written by ``safetensors.torch.save_file(model.state_dict(), path)``.
        new_classes: a classifier of that many classes stays as it is where the file's is of another number.

    Returns:
        Whether one stayed so.

    Raises:
        BundleError: the file is missing, a pickle, corrupt, does not fit (all names are told), or holds NaN or
            infinity.
    """
    return load_state(module, _read(Path(path)), str(path), new_classes=new_classes)


def load_state(module: nn.Module, state: Mapping[str, Tensor], origin: str, *, new_classes: int | None = None) -> bool:
    """Load a state dict strictly, in place; ``origin`` is named in the messages. Raises as :func:`load_weights`.

    With ``new_classes``, a classifier of that many classes stays as it is where the weights are of another number;
    returned is whether one did.
    """
    own, given = module.state_dict(), state
    if new_classes is not None:
        state = {name: _fitting(tensor, own.get(name), new_classes) for name, tensor in given.items()}
    _check(module, state, origin)
    # Tied tensors are stored once; _check has seen to it that nothing else is missing.
    module.load_state_dict(dict(state), strict=False)
    return any(state[name] is not tensor for name, tensor in given.items())


def pixels_in(path: str | PathLike[str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of pixels that readable weights were trained with, if their header says so."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get("pixels")
    if said is None:
        return None
    try:
        mean, std = (tuple(map(float, json.loads(said)[each])) for each in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} says of its pixels {said!r}, which is no mean and std. Write it again.") from error
    return mean, std


def _fitting(tensor: Tensor, own: Tensor | None, new_classes: int) -> Tensor:
    """The tensor; or the module's own, where they differ in the number of classes alone."""
    if own is None or own.dim() == 0 or own.shape == tensor.shape:
        return tensor
    return own if len(own) == new_classes and own.shape[1:] == tensor.shape[1:] else tensor


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() in _PICKLES:
        raise BundleError(
            f"{path} is a pickle, which can run any code when it is read, so spikezip refuses it. If you trust it,"
            " convert it once: import torch, safetensors.torch; state = torch.load(path, weights_only=True);"
            " safetensors.torch.save_file(state, 'weights.safetensors')."
        )
    if path.suffix.lower() != ".safetensors":
        raise BundleError(
            f"{path} does not end in .safetensors, the one format of weights that is read. Write it with"
            " safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        )
    if not path.is_file():
        raise BundleError(f"There is no file {path}. Check the path of the weights.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}. Write or download it again.") from error


def _check(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    own = module.state_dict()
    stored = {t.data_ptr() for name, t in own.items() if name in state and t.numel() > 0}
    missing = [name for name, t in own.items() if name not in state and t.data_ptr() not in stored]
    unexpected = [name for name in state if name not in own]
    misfits = [
        f"{name} ({_kind(state[name])} in the file, {_kind(own[name])} in the model)"
        for name in own
        if name in state
        and (state[name].shape != own[name].shape or state[name].is_floating_point() != own[name].is_floating_point())
    ]
    parts = [("missing from the file", missing), ("unknown to the model", unexpected), ("of another shape", misfits)]
    found = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)
    if found:
        raise BundleError(
            f"The weights of {origin} do not fit the {type(module).__name__}: {found}. Check that the network and its"
            " number of classes and channels are those that were trained."
        )
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise BundleError(
            f"{origin} holds NaN or infinity in {_some(bad)}; a network with such weights computes nothing. Use weights"
            " from before the training diverged."
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
