"""Networks as values: ``torch.fx.GraphModule`` plus the little that every stage needs to know of it.

A network is marked with its :class:`Stage` and its inputs (``gm.meta["spikezip"]``), and each node with the name its
author gave it (``node.meta["origin"]``) and its :class:`Spec` (``node.meta["spec"]``: shape and where the batch lies).
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as _replace_fields
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from spikezip.errors import CaptureError, InputError, StageError


class Stage(enum.Enum):
    """How far down the road a network is."""

    ANN = "ANN"
    QANN = "QANN"
    SNN = "SNN"


@dataclass(frozen=True)
class InputSpec:
    """What one input must look like: its shape behind the batch dimension, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, example: Tensor) -> InputSpec:
        """The spec of an example of shape ``[B, ...]``."""
        return cls(tuple(example.shape[1:]), example.dtype)

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
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_dim: int | None
    outer: bool = True
    inner: bool = False

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
    gm.meta["spikezip"] = _replace_fields(old, stage=stage or old.stage, notes=(*kept, *notes.items()))


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


def get_tensor(gm: nn.Module, target: Any) -> Tensor:
    """The parameter or buffer under a dotted name."""
    path, _, leaf = str(target).rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def constant(node: Any) -> Tensor | None:
    """The tensor behind a get_attr node; None for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return get_tensor(node.graph.owning_module, node.target)  # type: ignore[arg-type]
    return None


def put_tensor(gm: nn.Module, name: str, tensor: Tensor) -> None:
    """Store a parameter or buffer under a dotted name, making the modules on the way."""
    path, _, leaf = name.rpartition(".")
    module = gm
    for part in path.split(".") if path else []:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if hasattr(module, leaf):
        delattr(module, leaf)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


def free_name(gm: nn.Module, wanted: str) -> str:
    """``wanted``, or ``wanted_2``, ... : the first name nothing is stored under.

    Nothing may be stored inside a quantizer, a neuron or another leaf module either: its own name is changed then.
    """
    wanted = wanted or "neuron"
    parts = wanted.split(".")
    for i in range(1, len(parts)):
        above = ".".join(parts[:i])
        if _is_leaf(gm, above):
            return free_name(gm, free_name(gm, above) + wanted[len(above) :])
    candidate, count = wanted, 1
    while _taken(gm, candidate):
        count += 1
        candidate = f"{wanted}_{count}"
    return candidate


def _taken(gm: nn.Module, name: str) -> bool:
    holder, _, leaf = name.rpartition(".")
    try:
        return hasattr(gm.get_submodule(holder), leaf)
    except AttributeError:
        return False


def _is_leaf(gm: nn.Module, name: str) -> bool:
    try:
        return type(gm.get_submodule(name)) is not nn.Module
    except AttributeError:
        return False


def new_constant(gm: fx.GraphModule, name: str, tensor: Tensor, *, like: fx.Node) -> fx.Node:
    """A get_attr node for a new tensor under a free name; insert with the graph's current insertion point."""
    name = free_name(gm, name)
    put_tensor(gm, name, tensor)
    node = gm.graph.get_attr(name)
    node.meta = {"origin": like.meta.get("origin", "")}
    return node


def call(gm: fx.GraphModule, target: Callable, args: tuple, *, like: fx.Node) -> fx.Node:
    """A new call_function node that inherits the name of ``like``; uses the graph's current insertion point."""
    node = gm.graph.call_function(target, args)
    node.meta = {"origin": like.meta.get("origin", "")}
    return node


def replace(node: fx.Node, by: Any) -> None:
    """Let every user of ``node`` read ``by`` instead, and remove it."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def tidy(gm: fx.GraphModule) -> None:
    """Remove dead nodes and tensors, check the graph, recompile."""
    gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    gm.graph.lint()
    used = {str(n.target) for n in gm.graph.nodes if n.op in ("get_attr", "call_module")}
    for name in [
        n for n, _ in [*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)]
    ]:
        if name not in used and name.rpartition(".")[0] not in used:
            path, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(path), leaf)
    _drop_empty(gm, used)
    gm.recompile()


def _drop_empty(module: nn.Module, used: set[str], prefix: str = "") -> bool:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path not in used and type(child) is nn.Module and _drop_empty(child, used, f"{path}."):
            delattr(module, name)
        elif path not in used and type(child) is not nn.Module and not any(u.startswith(f"{path}.") for u in used):
            delattr(module, name)
    return not (module._modules or module._parameters or module._buffers)


# -- what is pure, and where the batch lies --------------------------------------------------------------------------


def refuse_impure(gm: fx.GraphModule) -> None:
    """Raise CaptureError naming a node that is random, writes to its inputs, or whose shape depends on data."""
    for node in gm.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        op = node.target
        if op is torch.ops.aten.scaled_dot_product_attention.default and not _dropout_of_attention(node):
            continue
        if op is torch.ops.aten.index.Tensor and not _indexes_by_mask(node):
            continue
        if torch.Tag.nondeterministic_seeded in op.tags:
            problem, advice = "draws random numbers", "Make it deterministic at inference"
        elif op._schema.is_mutable:
            problem, advice = "writes into its input", "Use the version that returns a new tensor"
        elif torch.Tag.dynamic_output_shape in op.tags or torch.Tag.data_dependent_output in op.tags:
            problem, advice = "has a result whose shape or use depends on data", "Use a mask of fixed shape instead"
        else:
            continue
        raise CaptureError(
            f"The node {describe(node)} {problem}; an SNN repeats a pure function of its input. {advice}."
        )


def _dropout_of_attention(node: fx.Node) -> float:
    return float(node.args[4]) if len(node.args) > 4 else float(node.kwargs.get("dropout_p", 0.0))  # type: ignore[arg-type]


def _indexes_by_mask(node: fx.Node) -> bool:
    types = [index.meta.get("dtype") for index in node.args[1] if index is not None]  # type: ignore[union-attr]
    return any(dtype in (None, torch.bool, torch.uint8) for dtype in types)


def annotate(gm: fx.GraphModule, *, anew: bool = True) -> None:
    """Write each node's Spec: its shape for one image, and which dimension the batch enters.

    The graph is run on shapes alone for batches of 1, 2 and 3; a dimension that grows with the batch holds it.

    Args:
        gm: the network.
        anew: look at every node; otherwise only at those made since the last time (a rewrite that keeps the shapes
            and types of all others).
    """
    fresh = [n for n in gm.graph.nodes if anew or not n.meta.get("annotated")]
    if not any(n.op != "output" for n in fresh):
        return
    shapes = [_shapes(gm, batch, None if anew else set(fresh)) for batch in (1, 2, 3)]
    for node in fresh:
        node.meta["annotated"] = True
        one, two, three = (s.get(node) for s in shapes)
        if one is None or two is None or three is None:
            node.meta.pop("spec", None)
            continue
        grows = [i for i, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
        if len(grows) > 1:
            raise CaptureError(
                f"In {describe(node)} the batch enters two dimensions: samples are mixed, which is refused."
            )
        old = node.meta.get("spec")
        where = (old.outer, old.inner) if isinstance(old, Spec) else (True, False)
        node.meta["spec"] = Spec(tuple(one.shape), one.dtype, grows[0] if grows else None, *where)


def _shapes(gm: fx.GraphModule, batch: int, only: set[fx.Node] | None) -> dict[fx.Node, Tensor]:
    """Tensors without values, one per node; ``only`` these, from what is known of the others."""
    found: dict[fx.Node, Tensor] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            known = n.meta.get("spec")
            if only is not None and n not in only and isinstance(known, Spec) and n.op == "call_function":
                return torch.empty(_for_batch(known, batch), dtype=known.dtype)
            try:
                result = super().run_node(n)
            except Exception as error:
                raise CaptureError(
                    f"The graph fails at {describe(n)} for a batch of {batch}: {error}. Accept any batch size."
                ) from error
            if isinstance(result, Tensor) and n.op != "output":
                found[n] = result
            return result

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = [torch.empty((batch, *s.shape), dtype=s.dtype) for s in info(gm).inputs]
        interpreter = Shapes(gm)
        interpreter.extra_traceback = False
        interpreter.run(*inputs)
    return found


def _for_batch(known: Spec, batch: int) -> tuple[int, ...]:
    return tuple(size * batch if i == known.batch_dim else size for i, size in enumerate(known.shape))


def refuse_batch_mixing(gm: fx.GraphModule) -> None:
    """Raise CaptureError naming the first node in which one sample of the batch changes another's value.

    Found by running pairs of batches that agree in one sample only, the first or the last (so that what looks one way
    along the batch is seen too), beside very negative and very positive ones (so that extremes over the batch move).
    Where the batch is not the slowest index of its dimension, the node is marked (see :class:`Spec`).
    """
    specs = info(gm).inputs
    generator = torch.Generator().manual_seed(0)

    def draw(s: InputSpec) -> Tensor:
        if s.dtype.is_floating_point:
            return torch.randn((1, *s.shape), generator=generator).to(s.dtype)
        return torch.randint(0, 2, (1, *s.shape), generator=generator).to(s.dtype)

    shared, first, second = ([draw(s) for s in specs] for _ in range(3))
    first = [-8 * x.abs() if x.is_floating_point() else x for x in first]
    second = [8 * x.abs() if x.is_floating_point() else x for x in second]

    def run(*batch: list[Tensor]) -> dict[fx.Node, Tensor]:
        return _values(gm, [torch.cat(samples) for samples in zip(*batch, strict=True)])

    pairs = [(run(shared, first), run(shared, second)), (run(first, shared), run(second, shared))]
    mixed: list[fx.Node] = []
    for node in gm.graph.nodes:
        if node not in pairs[0][0] or "spec" not in node.meta or spec(node).batch_dim is None:
            continue
        dim = spec(node).batch_dim or 0
        outer = inner = True
        for place, (one, two) in enumerate(pairs):
            a, b = (torch.nan_to_num(values[node]).movedim(dim, 0) for values in (one, two))
            outer &= torch.equal(a.chunk(2)[place], b.chunk(2)[place])
            inner &= torch.equal(a[place::2], b[place::2])
        if not outer:
            node.meta["spec"] = _replace_fields(spec(node), outer=False, inner=inner)
            mixed.append(node)
    for node in outputs(gm):
        if spec(node).batch_dim is None:
            raise CaptureError(
                f"The output {describe(node)} does not depend on the batch: it mixes samples, or ignores its input. "
                "A network to be converted answers each sample by itself."
            )
        if node in mixed:
            culprit = next((n for n in mixed if not spec(n).inner), node)
            raise CaptureError(
                f"The node {describe(culprit)} mixes the samples of a batch: one image changes another's answer. "
                "Normalise over channels or positions instead, or use BatchNorm in evaluation mode."
            )


def _values(gm: fx.GraphModule, inputs: list[Tensor]) -> dict[fx.Node, Tensor]:
    found: dict[fx.Node, Tensor] = {}

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                result = super().run_node(n)
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise CaptureError(
                    f"The graph fails at {describe(n)} on random inputs: {reason}. Give a typical example."
                ) from error
            if isinstance(result, Tensor):
                found[n] = result
            return result

    interpreter = Values(gm, garbage_collect_values=False)
    interpreter.extra_traceback = False
    with torch.no_grad():
        interpreter.run(*inputs)
    return found
