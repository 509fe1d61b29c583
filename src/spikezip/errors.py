"""Every error spikezip raises on purpose, as one tree.

::

    SpikezipError                 anything the user can mend; the command line prints it and exits with 2
    ├── CaptureError              torch.export could not capture the model
    ├── StageError                a network is not what a stage needs (an op with no rule, a ReLU left in an SNN, ...)
    ├── CalibrationError          scales cannot be found (no data, NaN, constant zero)
    ├── InputError                images of the wrong shape, type or with NaN
    ├── DataError                 a data set cannot be read
    ├── RecipeError               a training recipe is malformed
    ├── BundleError               a saved file is corrupt, foreign or hostile
    ├── UnknownNameError          no model, data set or layer of that name (near matches are told)
    ├── OutputError               a result cannot be written where it was asked for
    └── EquivalenceError          an SNN differs from its QANN (names the first layer and step)

Each message says what is wrong, where, and what to do next. ``assert`` is kept for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpikezipError(Exception):
    """Base of every error that the user can mend."""


class CaptureError(SpikezipError):
    """The model could not be captured as a graph."""


class StageError(SpikezipError):
    """A network does not fulfil the contract of the stage it was handed to."""


class CalibrationError(SpikezipError):
    """The scales of the quantizers could not be calibrated."""


class InputError(SpikezipError):
    """An input has the wrong shape or type, or holds NaN."""


class DataError(SpikezipError):
    """A data set cannot be found or read."""


class RecipeError(SpikezipError):
    """A recipe is malformed."""


class BundleError(SpikezipError):
    """A saved bundle is corrupt, foreign or hostile."""


class UnknownNameError(SpikezipError):
    """A name is not known; the message lists near matches.

    >>> str(UnknownNameError("data set", "cifar11", ["cifar10", "digits"]))
    "There is no data set 'cifar11'. Did you mean 'cifar10'? Known: cifar10, digits."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        super().__init__(f"There is no {kind} {name!r}.{hint} Known: {shown}.")


class OutputError(SpikezipError):
    """A result cannot be written where it was asked for."""


class EquivalenceError(SpikezipError):
    """A settled SNN differs from its QANN."""
