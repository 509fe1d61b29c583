"""What an SNN must be able to rely on: every node is a pure function, and every sample is answered by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import CaptureError
from spikezip.graph import network, ops
from spikezip.graph.network import Spec
from spikezip.graph.ops import Kind

_CROWD = 256  # images among which one is looked at, where two cannot tell
_CROWD_VALUES = 1 << 29  # of all nodes together; for large networks the crowd is smaller, but not below:
_LEAST_CROWD = 8


class RandomInputError(CaptureError):
    """The graph fails on inputs that are drawn at random."""


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
            f"The node {network.describe(node)} {problem}; an SNN repeats a pure function of its input. {advice}."
        )


def _dropout_of_attention(node: fx.Node) -> float:
    return float(node.args[4]) if len(node.args) > 4 else float(node.kwargs.get("dropout_p", 0.0))  # type: ignore[arg-type]


def _indexes_by_mask(node: fx.Node) -> bool:
    metas = [index.meta for index in node.args[1] if index is not None]  # type: ignore[union-attr]
    types = [meta["spec"].dtype if meta.get("spec") else meta.get("dtype") for meta in metas]
    return any(dtype in (None, torch.bool, torch.uint8) for dtype in types)


def refuse_half_precision(gm: fx.GraphModule) -> None:
    """Raise CaptureError naming the first node that computes in float16 or bfloat16 (autocast, ``.half()``)."""
    for node in gm.graph.nodes:
        if "spec" in node.meta and network.spec(node).dtype in (torch.float16, torch.bfloat16):
            raise CaptureError(
                f"The node {network.describe(node)} computes in {network.spec(node).dtype}: sums of so few digits are "
                "exact in no engine. Take autocast and casts out of forward, and convert the model, model.float()."
            )


def refuse_batch_mixing(gm: fx.GraphModule) -> None:
    """Raise CaptureError naming the first node in which one sample of the batch changes another's value.

    Found by running pairs of batches that agree in one sample only, the first or the last (so that what looks one way
    along the batch is seen too), beside very negative and very positive ones (so that extremes over the batch move);
    and by running a sample alone, as the size of the batch may itself be reckoned with. Where the batch is not the
    slowest index of its dimension, or a sample's value depends on its place or on the others, the node is marked (see
    :class:`Spec`). Where any is marked so, or reads the size of the batch, a sample alone is compared with the same
    sample in a crowd too: an answer may depend on what two samples never reach, as the number of those an expert takes.
    """
    specs = network.info(gm).inputs
    generator, device = torch.Generator().manual_seed(0), network.device(gm)
    shared, first, second = ([s.draw(1, generator, device) for s in specs] for _ in range(3))
    anything = [s.drawn is None and s.dtype.is_floating_point for s in specs]
    first = [-8 * x.abs() if any_number else x for x, any_number in zip(first, anything, strict=True)]
    second = [8 * x.abs() if any_number else x for x, any_number in zip(second, anything, strict=True)]

    def run(*batch: list[Tensor]) -> dict[fx.Node, Tensor]:
        return _values(gm, [torch.cat(samples) for samples in zip(*batch, strict=True)])

    pairs = [(run(shared, first), run(shared, second)), (run(first, shared), run(second, shared))]
    mixed: list[fx.Node] = []
    mingled: set[fx.Node] = set()  # of these some value is made from more samples than one
    for node in gm.graph.nodes:
        if node not in pairs[0][0] or "spec" not in node.meta or network.spec(node).batch_dim is None:
            continue
        dim = network.spec(node).batch_dim or 0
        outer = inner = True
        moved = []
        for place, (one, two) in enumerate(pairs):
            a, b = (torch.nan_to_num(values[node]).movedim(dim, 0) for values in (one, two))
            outer &= torch.equal(a.chunk(2)[place], b.chunk(2)[place])
            inner &= torch.equal(a[place::2], b[place::2])
            moved.append(a != b)
        if not outer:
            stretch = 0 if inner else _stretch([[values[node].movedim(dim, 0) for values in pair] for pair in pairs])
            node.meta["spec"] = replace(network.spec(node), outer=False, inner=inner, stretch=stretch)
            mixed.append(node)
        if not outer and not inner and (network.spec(node).shape[dim] == 1 or bool((moved[0] & moved[1]).any())):
            mingled.add(node)
    for node in network.outputs(gm):
        if network.spec(node).batch_dim is None:
            raise CaptureError(
                f"The output {network.describe(node)} does not depend on the batch: it mixes samples, or ignores its "
                "input. A network to be converted answers each sample by itself."
            )
        if node in mixed:
            culprit = next((n for n in mixed if not network.spec(n).inner), node)
            raise CaptureError(
                f"The node {network.describe(culprit)} mixes the samples of a batch: one image changes another's "
                "answer. Normalise over channels or positions instead, or use BatchNorm in evaluation mode."
            )

    _check_reductions(gm, [torch.cat(samples) for samples in zip(shared, first, strict=True)], pairs[0][0])
    alone = _check_size(gm, shared, pairs[0][0])
    _check_places(gm, [torch.cat(samples) for samples in zip(first, shared, strict=True)], pairs[0][0], pairs[1][0])
    for node, value in alone.items():
        if node.op == "call_function" and "spec" in node.meta and network.spec(node).batch_dim is None:
            among = (torch.nan_to_num(values[node].detach()) for pair in pairs for values in pair)
            if not all(torch.equal(torch.nan_to_num(value.detach()), other) for other in among):
                mingled.add(node)
    for node in mingled:
        node.meta["spec"] = replace(network.spec(node), placed=True)
    _check_crowd(gm, shared, alone, generator)


def _stretch(pairs: list[list[Tensor]]) -> int:
    """How many places of one of two samples lie side by side (see :class:`Spec`), of values that agree in the first
    sample and of others that agree in the second; 0 if no number tells."""
    size = len(pairs[0][0]) // 2
    for stretch in range(2, size):
        if size % stretch == 0 and all(
            torch.equal(*(torch.nan_to_num(value).unflatten(0, (-1, 2, stretch))[:, place] for value in pair))
            for place, pair in enumerate(pairs)
        ):
            return stretch
    return 0


def _check_reductions(gm: fx.GraphModule, batch: list[Tensor], found: dict[fx.Node, Tensor]) -> None:
    """Refuse what all samples share and is made from them, such as their greatest value, where an answer goes by it.

    Whether it is greater than 1, say, may be the same for all samples that were drawn: so each such value is changed,
    and no output may move. ``found`` are all values of ``batch``.
    """
    for node in gm.graph.nodes:
        value = found.get(node)
        if value is None or node.op != "call_function" or "spec" not in node.meta:
            continue
        if network.spec(node).batch_dim is not None:
            continue
        reads = [n for n in node.all_input_nodes if "spec" in n.meta and network.spec(n).batch_dim is not None]
        if not reads or ops.kind(node) is Kind.CONSTANT or value.is_complex():
            continue
        for other in _others(value):
            try:
                changed = _values(gm, batch, lambda n, v, node=node, other=other: other if n is node else v)
            except RandomInputError:  # a place that there is not, say
                continue
            if not all(_alike(changed[out], found[out]) for out in network.outputs(gm)):
                raise CaptureError(
                    f"The node {network.describe(node)} makes one value of the samples of a batch, and answers go by "
                    "it: one image may change another's. Reckon within each image, x.amax((1, 2, 3)) and not x.max()."
                )


def _others(value: Tensor) -> list[Tensor]:
    """Values unlike this one."""
    if value.dtype is torch.bool:
        return [~value]
    if value.is_floating_point():
        return [torch.zeros_like(value), -1e3 * (value.abs() + 1)]
    return [torch.zeros_like(value), torch.full_like(value, min(torch.iinfo(value.dtype).max, 10_000))]


def _check_size(gm: fx.GraphModule, sample: list[Tensor], together: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """Refuse what gives a sample another value alone than as the first of two; return the values it has alone.

    Each node is given what its operands were among two, so that no rounding grows from node to node.
    """

    def first_of_two(node: fx.Node, alone: Any) -> Any:
        spec: Spec | None = node.meta.get("spec")
        if node not in together or spec is None or spec.batch_dim is None or not spec.outer:
            return alone
        first = together[node].chunk(2, spec.batch_dim)[0]
        if not _alike(alone, first):
            raise CaptureError(
                f"The node {network.describe(node)} reckons with the size of the batch: one image more changes "
                "another's answer. Use sizes of images or channels alone."
            )
        return first

    return _values(gm, sample, first_of_two)


def _check_places(
    gm: fx.GraphModule, batch: list[Tensor], other: dict[fx.Node, Tensor], found: dict[fx.Node, Tensor]
) -> None:
    """Mark what gives a sample another value at another place in the batch; refuse an output that does.

    ``found`` are the values of ``batch``, ``other`` those of the same two samples in the other order. Where they are
    not the same to the bit, each node is given what its operands were in that order, so that no rounding grows.
    """
    swapped: dict[fx.Node, Tensor] = {}
    for node, value in other.items():
        spec: Spec | None = node.meta.get("spec")
        if spec is None:
            continue
        node.meta["spec"] = replace(spec, placed=False)
        if spec.batch_dim is not None and (spec.outer or spec.inner) and value.numel():
            dim, inner = spec.batch_dim, not spec.outer
            swapped[node] = value.unflatten(dim, (-1, 2) if inner else (2, -1)).flip(dim + inner).flatten(dim, dim + 1)
    if all(torch.equal(torch.nan_to_num(found[n]), torch.nan_to_num(value)) for n, value in swapped.items()):
        return

    def as_swapped(node: fx.Node, value: Any) -> Any:
        if node not in swapped or _alike(value, swapped[node]):
            return swapped.get(node, value)
        node.meta["spec"] = replace(network.spec(node), placed=True)
        return value

    _values(gm, batch, as_swapped)
    if (culprit := _placed_in_output(gm)) is not None:
        raise CaptureError(
            f"The node {network.describe(culprit)} answers by its place in the batch: an image has another answer as "
            "the first of two than as the second. Go by the size of positions, x.size(1), not of the batch, x.size(0)."
        )


def _placed_in_output(gm: fx.GraphModule) -> fx.Node | None:
    """The first of the placed values that a placed output comes from; None where no output is placed."""
    blamed = [n for n in network.outputs(gm) if network.spec(n).placed]
    for node in blamed:
        blamed += [n for n in node.all_input_nodes if n not in blamed and "spec" in n.meta and network.spec(n).placed]
    return next((n for n in gm.graph.nodes if n in blamed), None)


def _check_crowd(
    gm: fx.GraphModule, sample: list[Tensor], alone: dict[fx.Node, Tensor], generator: torch.Generator
) -> None:
    """Mark what gives a sample another value in a crowd than alone; refuse an output that does.

    Only where some value depends on a sample's place, on the others, or is reckoned with the size of the batch: such
    networks are rare, and pay for it alone.
    The crowd is one quarter other samples, then copies of the one, so that all of them want the same. Each node is
    given what its operands were alone, so that no rounding grows.
    """
    specs = {n: network.spec(n) for n in alone if "spec" in n.meta}
    if not any(spec.placed or any(_is_size(argument) for argument in n.args) for n, spec in specs.items()):
        return
    size = min(_CROWD, max(_LEAST_CROWD, _CROWD_VALUES // sum(spec.numel for spec in specs.values())))
    others = size // 4

    def as_alone(node: fx.Node, value: Any) -> Any:
        spec = specs.get(node)
        if spec is None or spec.placed or not alone[node].numel():
            return value
        if spec.batch_dim is None:
            alike, given = _alike(value, alone[node]), value
        elif spec.outer or spec.inner:
            dim, inner = spec.batch_dim, not spec.outer
            by_sample = value.unflatten(dim, (-1, size) if inner else (size, -1)).movedim(dim + inner, 0)
            one = alone[node].unsqueeze(0).expand(size - others, *alone[node].shape)
            alike = _alike(by_sample[others:], one)
            given = torch.cat([by_sample[:others], one]).movedim(0, dim + inner).flatten(dim, dim + 1)
        else:
            return value
        if not alike:
            node.meta["spec"] = replace(spec, placed=True)
            return value
        return given

    inputs = network.info(gm).inputs
    crowd = [torch.cat([s.draw(others, generator, x.device), *[x] * (size - others)]) for s, x in zip(inputs, sample)]
    _values(gm, crowd, as_alone, keep=False)
    if (culprit := _placed_in_output(gm)) is not None:
        raise CaptureError(
            f"The node {network.describe(culprit)} mixes the samples of a batch: among {size} images one has another "
            "answer than alone. Reckon within each image; let no image take a place that another may then not have."
        )


def _is_size(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and "spec" not in argument.meta and ops.kind(argument) is Kind.SIZE


def _alike(alone: Tensor, first: Tensor) -> bool:
    """Whether two tensors are the same, but for rounding."""
    if not (alone.is_floating_point() or alone.is_complex()):
        return torch.equal(alone, first)
    a, b = (torch.nan_to_num(t.detach().abs() if t.is_complex() else t.detach()).double() for t in (alone, first))
    return float((a - b).abs().amax()) <= 1e-3 * float(b.abs().amax()) if a.numel() else True


def _values(
    gm: fx.GraphModule,
    inputs: list[Tensor],
    instead: Callable[[fx.Node, Any], Any] = lambda node, value: value,
    *,
    keep: bool = True,
) -> dict[fx.Node, Tensor]:
    """Each node's value, where it is to be kept; ``instead`` gives what its readers are to have."""
    found: dict[fx.Node, Tensor] = {}

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                result = super().run_node(n)
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise RandomInputError(
                    f"The graph fails at {network.describe(n)} on random inputs: {reason}. Give a "
                    "typical example of several samples: whole numbers are drawn from its range."
                ) from error
            if isinstance(result, Tensor) and keep:
                found[n] = result
            return instead(n, result)

    interpreter = Values(gm, garbage_collect_values=not keep)
    interpreter.extra_traceback = False
    with torch.no_grad():
        interpreter.run(*inputs)
    return found
