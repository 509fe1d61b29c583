"""Models that a user's own Python file builds."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from spikezip.errors import CaptureError, UnknownNameError

Example = Tensor | tuple[Tensor, ...]


def build_from_file(spec: str) -> tuple[nn.Module, Example | None]:
    """Call the function of ``path/to/file.py:function``; it is the user's code and runs with the user's rights.

    Returns:
        The module, and the example input if the function returned one.

    Raises:
        CaptureError: no such file, or the file or function fails or returns something else.
        UnknownNameError: the file has no such function.
    """
    file, _, name = spec.rpartition(":")
    if spec.endswith(".py") or not name:
        raise CaptureError(
            f"{spec} names no function. Write {spec.rstrip(':')}:FUNCTION, a function that returns the model."
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise CaptureError(
            f"There is no file {path}. Give the path of a Python file, then a colon and a function in it."
        )
    module = _load(path)
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise UnknownNameError(f"function in {path}", name, own)
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise CaptureError(
            f"{spec} failed with {type(error).__name__}: {error}. The function is called without arguments and must"
            " return the model."
        ) from error
    return _unpack(spec, result)


def _load(path: Path) -> ModuleType:
    path = path.resolve()
    name = f"_spikezip_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CaptureError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    # As `python file.py` does, so that it can import its neighbours: now, and when the function or the model is called.
    if sys.path[:1] != [str(path.parent)]:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise CaptureError(
            f"{path} cannot be imported: {type(error).__name__}: {error}{where}. Mend the file first."
        ) from error
    return module


def _unpack(spec: str, result: object) -> tuple[nn.Module, Example | None]:
    if isinstance(result, nn.Module):
        return result, None
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        example = result[1]
        if isinstance(example, Tensor):
            return result[0], example
        if isinstance(example, list | tuple) and example and all(isinstance(t, Tensor) for t in example):
            return result[0], tuple(example)
        raise CaptureError(
            f"{spec} returned {type(example).__name__} as the example input; return a tensor or a tuple of them."
        )
    raise CaptureError(
        f"{spec} returned {type(result).__name__}; return a torch.nn.Module, or a pair (module, example_input)."
    )
