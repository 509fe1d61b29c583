"""How another's network is called: without its modules' training, and without torch telling a failure twice."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from torch import nn

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch._export", "torch.export")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, a network and its modules are in evaluation mode; then each in its own again."""
    training = [module for module in model.modules() if module.training]
    for module in model.modules():
        with contextlib.suppress(NotImplementedError):  # what torch.export made has one mode, and forbids eval()
            module.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, torch's warnings, and what it logs or prints of a failing export or shape run, are not shown."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
