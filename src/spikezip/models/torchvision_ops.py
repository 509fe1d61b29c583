"""The one place that imports torchvision and timm, also where torchvision's compiled operators do not load."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library withdraws its schemas when it is collected


def declare_missing_ops() -> None:
    """Declare the operators that ``import torchvision`` presumes, if its own library cannot provide them.

    A torchvision built for CUDA cannot load its compiled library beside a CPU-only torch, and then fails on import
    because it registers fake kernels for ``nms`` and ``qnms``, which nobody has declared. The schemas alone are enough
    for everything that does not suppress boxes. Nothing happens where the library loads, or on a second call.
    """
    if "torchvision" in sys.modules or _load_compiled_ops():
        return
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _declared.append(library)


def _load_compiled_ops() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = folder / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(str(library))
            except (ImportError, OSError):
                return False
            return True
    return False


def import_torchvision(submodule: str = "") -> ModuleType:
    """Import torchvision, or one of its submodules, on any build of torch.

    Args:
        submodule: for example ``"transforms.v2"``; empty for torchvision itself.

    Returns:
        The module.

    Raises:
        ImportError: torchvision is not installed.

    >>> import_torchvision("transforms.v2").__name__
    'torchvision.transforms.v2'
    """
    return _import("torchvision" + (f".{submodule}" if submodule else ""))


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision, on any build of torch."""
    return _import("timm")


def _import(name: str) -> ModuleType:
    declare_missing_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside third-party packages are not the user's to mend
        return importlib.import_module(name)
