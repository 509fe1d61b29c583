"""What a user may choose about the shape of the network that becomes spiking."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from spikezip.errors import StageError


class Pooling(enum.Enum):
    """What becomes of max-pooling."""

    KEEP = "keep"  #: exact and ternary: max(S_t) - max(S_{t-1}) is -1, 0 or +1 under one threshold
    AVERAGE = "average"  #: the paper's choice; changes the function


class Activation(enum.Enum):
    """What becomes of activations other than ReLU."""

    KEEP = "keep"  #: the quantizer sits behind the function, Q(f(U)); the function is kept
    RELU = "relu"  #: replaced by ReLU (the paper, for YOLO's LeakyReLU); changes the function


class Residual(enum.Enum):
    """How residual blocks are wired; all but ``VANILLA`` change the function."""

    VANILLA = "vanilla"  #: the neuron sits behind the addition, as in the ANN; keeps the function
    RCR = (
        "rcr"  #: the paper: neurons before the addition, on the main branch and on convolutional shortcuts; integer sum
    )
    SEW_ADD = "sew-add"  #: SEW ResNet, ADD: as RCR, but convolutional shortcuts are rectified
    IAND = "iand"  #: SEW ResNet, IAND: what the shortcut has beyond the main branch
    MS = "ms"  #: MS-ResNet: identities carry the currents, not the spikes


class BatchNorm(enum.Enum):
    """What becomes of BatchNorm."""

    FOLDED = "folded"  #: into the weights before it, at once: paths and time steps share one affine map
    LIVE = "live"  #: kept for fine-tuning, with own statistics in each sub-path (not at each step); folded at the end


@dataclass(frozen=True)
class Morph:
    """The choices of :func:`morph`; the defaults keep the network's function.

    What changes it is made up for in part by refitted weights (``convert``, or ``quantize(..., refit=True,
    original=...)``; not ``IAND``), and by fine-tuning.
    """

    pooling: Pooling = Pooling.KEEP
    activation: Activation = Activation.KEEP
    residual: Residual = Residual.VANILLA
    batch_norm: BatchNorm = BatchNorm.FOLDED

    def __post_init__(self):
        kinds = {"pooling": Pooling, "activation": Activation, "residual": Residual, "batch_norm": BatchNorm}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                raise StageError(f"{name}={value!r}: give one of {', '.join(map(str, kind))}.")
