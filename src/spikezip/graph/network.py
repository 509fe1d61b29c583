"""Networks as values: ``torch.fx.GraphModule`` plus the little that every stage needs to know of it.

A network is marked with its :class:`Stage` and its inputs (``gm.meta["spikezip"]``), and each node with the name its
author gave it (``node.meta["origin"]``) and its :class:`Spec` (``node.meta["spec"]``: shape and where the batch lies).
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from spikezip.errors import InputError, StageError

Network = TypeVar("Network", bound=nn.Module)


class Stage(enum.Enum):
    """How far down the road a network is."""

    ANN = "ANN"
    QANN = "QANN"
    SNN = "SNN"


@dataclass(frozen=True)
class InputSpec:
    """What one input must look like: its shape behind the batch dimension, and its type.

    Attributes:
        shape: behind the batch dimension.
        dtype: its type.
        drawn: the least and greatest whole number that :meth:`draw` gives, None for any number; for capture alone, and
            not saved.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    drawn: tuple[int, int] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, example: Tensor) -> InputSpec:
        """The spec of an example of shape ``[B, ...]``."""
        drawn = None if example.is_floating_point() else _whole_numbers(example)
        return cls(tuple(example.shape[1:]), example.dtype, drawn)

    def as_whole(self, example: Tensor) -> InputSpec:
        """The same, with whole numbers drawn where floats are such throughout the example, as a mask's 0 and 1."""
        values = example.unique() if example.is_floating_point() else example[:0]
        if values.numel() < 2 or not torch.equal(values, values.round()):
            return self
        return replace(self, drawn=_whole_numbers(values.long()))

    def draw(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Random values for so many images; whole numbers as the example had them."""
        shape = (batch, *self.shape)
        if self.drawn is None and self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(device, self.dtype)
        low, high = self.drawn or (0, 1)
        return torch.randint(low, high + 1, shape, generator=generator).to(device, self.dtype)

    def check(self, x: Tensor, name: str = "input") -> None:
        """Raise InputError unless ``x`` is finite, of this type, and of shape ``[B, *shape]`` with B ≥ 1."""
        if not isinstance(x, Tensor):
            raise InputError(f"The {name} is a {type(x).__name__}; pass a torch.Tensor of shape {self._wanted()}.")
        if tuple(x.shape[1:]) != self.shape or x.dim() == 0 or x.shape[0] == 0:
            raise InputError(f"The {name} has shape {tuple(x.shape)}; this network takes {self._wanted()}, B ≥ 1.")
        if x.dtype != self.dtype:
            raise InputError(f"The {name} is {x.dtype}; this network takes {self.dtype}. Convert it with x.to(...).")
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"The {name} holds NaN or infinity. Clean the data first.")

    def _wanted(self) -> str:
        return "[B" + "".join(f", {n}" for n in self.shape) + "]"


def _whole_numbers(example: Tensor) -> tuple[int, int]:
    """The least and greatest whole number of an example; where it has but one, those between it and 1 (or 0)."""
    if example.is_floating_point() or example.is_complex() or not example.numel():
        return 0, 1
    low, high = (min(int(v), 2**63 - 2) for v in (example.min(), example.max()))
    if low < high:
        return low, high
    return (0, 1) if low in (0, 1) else (min(low, 1), max(low, 1))


@dataclass(frozen=True)
class Info:
    """What is known of a network as a whole; ``notes`` are the choices made on the way (residual, weight bits, ...)."""

    stage: Stage
    inputs: tuple[InputSpec, ...]
    notes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Spec:
    """The shape of one node's value for a batch of one, and how the batch enters it.

    Attributes:
        shape: for a batch of 1.
        dtype: of the value.
        batch_dim: the dimension whose size grows with the batch; None for a value that does not depend on it.
        outer: the batch is the slowest index within that dimension (it may be merged with others, ``B * windows``).
        inner: it is the fastest (``tokens * B``). A dimension that is neither cannot hold time steps as well.
        stretch: where it is neither (``rows * B * columns``), how many places of an image lie side by side: place ``i``
            is image ``i // stretch % B``'s. 0 if it is one of both, or no such number tells.
        placed: a sample's part depends on its place in the batch, as ``arange(B)`` does, or on the other samples, as
            sums along the batch do. In a batch of which samples leave, or which holds time steps as well, it says
            something else.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_dim: int | None
    outer: bool = True
    inner: bool = False
    placed: bool = False
    stretch: int = 0

    @property
    def numel(self) -> int:
        """Values per image."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def info(gm: fx.GraphModule) -> Info:
    """What is known of a network; StageError for a GraphModule that spikezip did not make."""
    found = gm.meta.get("spikezip") if isinstance(gm, fx.GraphModule) else None
    if not isinstance(found, Info):
        raise StageError(
            f"This {type(gm).__name__} did not come from spikezip. Call spikezip.capture(model, example) first."
        )
    return found


def mark(gm: fx.GraphModule, stage: Stage, inputs: Sequence[InputSpec], notes: Iterable[tuple[str, Any]] = ()) -> None:
    """Write down the stage and inputs of a network."""
    gm.meta["spikezip"] = Info(stage, tuple(inputs), tuple(notes))


def remark(gm: fx.GraphModule, *, stage: Stage | None = None, **notes: Any) -> None:
    """Change the stage, or add notes, in place."""
    old = info(gm)
    kept = tuple((k, v) for k, v in old.notes if k not in notes)
    gm.meta["spikezip"] = replace(old, stage=stage or old.stage, notes=(*kept, *notes.items()))


def note(gm: fx.GraphModule, key: str, default: Any = None) -> Any:
    """One note of a network."""
    return dict(info(gm).notes).get(key, default)


def expect(gm: fx.GraphModule, stage: Stage, verb: str) -> None:
    """Raise StageError unless the network is at ``stage``."""
    found = info(gm).stage
    if found is not stage:
        before = {Stage.ANN: "capture()", Stage.QANN: "quantize()", Stage.SNN: "spike()"}[stage]
        raise StageError(f"{verb}() takes {_article(stage)}, but was given {_article(found)}. Call {before} before it.")


def _article(stage: Stage) -> str:
    return {Stage.ANN: "an ANN", Stage.QANN: "a QANN", Stage.SNN: "an SNN"}[stage]


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """A deep copy: stages return new networks and leave what they were given untouched."""
    return copy.deepcopy(gm)


def stamp(gm: fx.GraphModule) -> None:
    """Let every node know its name, which rewriting hands on to what then holds its value."""
    for node in gm.graph.nodes:
        node.meta["was"] = node.name


def copied(model: Network) -> Network:
    """A deep copy of any module; what it keeps of an earlier call (an activation) is cut from how it was computed.

    Raises:
        StageError: it keeps what cannot be copied.
    """
    held = (t for module in model.modules() for t in tree_leaves(vars(module)))
    computed = [t for t in held if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    except (RuntimeError, TypeError) as reason:
        raise StageError(
            f"This {type(model).__name__} cannot be copied: {reason}\nRemove what its attributes keep beside "
            "parameters, buffers and modules."
        ) from reason


# -- nodes ------------------------------------------------------------------------------------------------------------


def origin(node: fx.Node) -> str:
    """The dotted name of the module that made this node, as its author wrote it."""
    return node.meta.get("origin") or node.name


def spec(node: fx.Node) -> Spec:
    """The node's shape and batch dimension."""
    return node.meta["spec"]


def describe(node: fx.Node) -> str:
    """How a message names a node: its author's name and its operation."""
    return f"{origin(node)!r} ({op_name(node)})"


def op_name(node: fx.Node) -> str:
    """``aten.conv2d.default`` -> ``conv2d``; a module's class name; else the target's name."""
    if node.op == "call_function":
        if isinstance(node.target, torch._ops.OpOverload):
            return node.target._schema.name.split("::")[-1]
        return getattr(node.target, "__name__", str(node.target))
    if node.op == "call_module":
        owner = node.graph.owning_module
        return type(owner.get_submodule(str(node.target))).__name__ if owner is not None else "module"
    return node.op


def modules_of(gm: fx.GraphModule, kind: type[nn.Module]) -> Iterator[tuple[fx.Node, Any]]:
    """The call_module nodes whose module is a ``kind``, in order of execution, each with its module."""
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            if isinstance(module, kind):
                yield node, module


def outputs(gm: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The nodes whose values the network returns."""
    result = gm.graph.output_node().args[0]
    return (result,) if isinstance(result, fx.Node) else tuple(result)  # type: ignore[arg-type]


def device(gm: nn.Module) -> torch.device:
    """Where a network's tensors are; the CPU if it has none."""
    return next((t.device for t in (*gm.parameters(), *gm.buffers())), torch.device("cpu"))


def is_sound(weight: Tensor) -> bool:
    """Whether a parameter or buffer holds finite numbers alone; buffers -inf too, as attention masks are stored."""
    finite = weight.isfinite()
    if not isinstance(weight, nn.Parameter):
        finite |= weight == float("-inf")
    return bool(finite.all())


def get_tensor(gm: nn.Module, target: Any) -> Tensor:
    """The parameter or buffer under a dotted name."""
    path, _, leaf = str(target).rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def constant(node: Any) -> Tensor | None:
    """The tensor behind a get_attr node; None for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return get_tensor(node.graph.owning_module, node.target)  # type: ignore[arg-type]
    return None
