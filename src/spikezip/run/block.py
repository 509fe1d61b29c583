"""One pass over the graph for a block of time steps, on the rows that changed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network
from spikezip.graph.network import Spec
from spikezip.kernels import Apart, Joined, Moves, Rows, Sum, gather, max_pool2d, scan, to_device, union
from spikezip.quantize.grid import FLOAT32_BITS, FixedPoint
from spikezip.run.plan import Plan, is_plain, is_size
from spikezip.run.step import (
    bias_of,
    images_back,
    images_first,
    operation_of,
    scattered,
    shaped_bias,
    without_bias,
)
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork

_aten = torch.ops.aten

#: Operations that move codes about, or choose among them, and so take bytes as well as numbers.
_MOVES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "getitem", "roll", "flip",
    "contiguous", "movedim", "clone", "upsample_nearest2d",
}  # fmt: skip


class Block:
    """The values of a network over a block of K steps, for some images.

    Every value that depends on images is kept as :class:`~spikezip.kernels.Rows`; an operation runs once, on the rows
    in which its operands changed, as if they were a batch of images.

    Args:
        snn: the network.
        plan: its plan.
        inputs: of these images.
        shares: of the input, at each step.
        bias_shares: of the biases.
        tracers: each layer's, before the block; those missing start where their layer's do.
        kept: what depends on no neuron, computed by a block before (of the same images) in which inputs and biases
            had arrived in full; filled by the first such block.
        keep_codes: keep every layer's codes to the end, in ``codes``; by default they go when nobody reads them.
        every: every value behind neurons has a row for each step and image, so that all shapes are known before.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        plan: Plan,
        inputs: tuple[Tensor, ...],
        shares: list[float],
        bias_shares: list[float],
        tracers: dict[str, Tensor],
        kept: dict[fx.Node, Any],
        keep_codes: bool = False,
        every: bool = False,
    ):
        self.graph, self.plan = snn.graph, plan
        self.inputs: Iterator[Tensor] = iter(inputs)
        self.images = inputs[0].shape[0]
        self.still = torch.arange(self.images).expand(len(shares), self.images)
        self.shares = self._steps(shares)
        self.bias_shares = None if all(s == 1.0 for s in bias_shares) else self._steps(bias_shares)
        self.complete = self.bias_shares is None and all(s == 1.0 for s in shares)
        self.tracers, self.kept = tracers, kept
        self.skip = bool(kept) and self.complete
        self.env: dict[fx.Node, Any] = {}
        self.moves: dict[str, Moves] = {}
        self.keep_codes, self.every = keep_codes, every
        self.codes: dict[str, Rows] = {}

    def run(self) -> list[Tensor]:
        """The outputs, ``[K, B, ...]`` each; ``moves`` then holds how each layer moved."""
        for node in self.plan.nodes:
            if self.skip and node not in self.plan.dependent and node.op != "get_attr":
                if node in self.kept:
                    kept = self.kept[node]
                    self.env[node] = replace(kept, map=self.still) if isinstance(kept, Rows) else kept
                continue
            self.env[node] = self._compute(node)  # and nothing else holds it
            if self.complete and node in self.plan.frontier:
                kept = self.env[node]
                self.kept[node] = kept.numbers() if isinstance(kept, Apart) else kept
            self._release(node)
        return [self._unfold(node) for node in network.outputs(self.graph)]

    def _release(self, node: fx.Node) -> None:
        """Forget what nobody reads after a node."""
        for value in self.plan.free.get(node, []):
            self.env.pop(value, None)

    def _steps(self, shares: list[float]) -> Rows:
        """Shares over time: a new row wherever they change."""
        distinct: list[float] = []
        which = []
        for share in shares:
            if not distinct or share != distinct[-1]:
                distinct.append(share)
            which.append(len(distinct) - 1)
        values = torch.tensor(distinct, dtype=torch.float64).repeat_interleave(self.images)
        map = torch.tensor(which).unsqueeze(1) * self.images + torch.arange(self.images)
        return Rows(values, map if len(distinct) > 1 else self.still, torch.float64)

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._input(next(self.inputs))
        if node.op == "get_attr":
            return self.plan.constants[node]
        if node in self.plan.neurons:
            return self._neurons(node, self.plan.neurons[node])
        if node.op == "call_module" and (found := self._rounded(node)) is not None:
            return found
        if node.op == "call_function":
            for way in (
                self._synapse,
                self._unchanged,
                self._apart,
                self._multiplied,
                self._scaled,
                self._affine,
                self._added,
            ):
                if (found := way(node)) is not None:
                    return found
        return self._operation(node)

    def _input(self, x: Tensor) -> Rows:
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        if not x.is_floating_point() or self.complete:
            return Rows(x, self.still, x.dtype)
        shares = self.shares.rows[:: self.images].tolist()
        return Rows(torch.cat([x if s == 1.0 else s * x for s in shares]), self.shares.map, x.dtype)

    # -- the ways that save work: each returns None where it does not apply ------------------------------------------

    def _synapse(self, node: fx.Node) -> Rows | Sum | None:
        """Integer weights on codes: 8-bit kernels."""
        synapse = self.plan.synapses.get(node)
        if synapse is None:
            return None
        codes = self.env[node.args[0]]  # type: ignore[index]
        whole = self.bias_shares is None or synapse.bias is None
        if isinstance(codes, Sum | Joined):
            sums = synapse.of_each(codes, bias=whole)
        else:
            takes = isinstance(codes, Rows) and synapse.takes(codes)
            sums = synapse(codes, bias=whole, later=whole and self._for_scan(node)) if takes else None
        if sums is None:
            return None
        if not whole:
            return self._with_bias(node, sums.numbers(), synapse.bias)  # type: ignore[arg-type]
        return sums.numbers() if isinstance(sums, Sum) and not self._for_neurons(node) else sums

    def _unchanged(self, node: fx.Node) -> Rows | None:
        """Codes that only move: bytes."""
        operands = [self.env[n] for n in node.all_input_nodes if not is_size(n)]
        first = operands[0] if operands else None
        if not isinstance(first, Rows):
            return None
        name = network.op_name(node)
        if node.target is _aten.to.dtype and (
            first.dtype is node.args[1]
            or first.is_code
            or (first.is_plain and all(user in self.plan.columns for user in node.users))
            or (first.is_exact_sum and first.dtype is torch.float32 and node.args[1] is torch.float64)
            or (first.grid and first.grid[1] < 2**FLOAT32_BITS and node.args[1] is torch.float32)
        ):
            return replace(first, dtype=node.args[1])
        if first.is_exact_sum:
            return None
        if name == "cat" and all(isinstance(o, Rows) and o.is_code and o.zero == first.zero for o in operands):
            return self._operation(node, codes=replace(first, top=max(o.top for o in operands)))
        if first.top and name in _MOVES and len(operands) == 1:
            return self._operation(node, codes=first)
        if first.top and first.rows_are_bytes and _pools(node, [first]):
            return first.with_rows(max_pool2d(first.rows, *node.args[1:]))  # type: ignore[arg-type]
        return None

    def _multiplied(self, node: fx.Node) -> Rows | None:
        """Codes times codes, while their product is a byte."""
        if node.target is not _aten.mul.Tensor or not all(isinstance(n, fx.Node) for n in node.args):
            return None
        codes = [self.env[n] for n in node.args]  # type: ignore[index]
        if not all(isinstance(c, Rows) and c.is_code and c.rows_are_bytes and c.zero >= 0 for c in codes):
            return None
        first, second = ((-c.zero, c.top - c.zero) for c in codes)
        ends = [a * b for a in first for b in second]
        zero = -min(ends)
        if zero < 0 or max(ends) + zero > 255 or any(c.dtype is not network.spec(node).dtype for c in codes):
            return None
        map, picks = union([c.map for c in codes])
        left, right = (
            self._picked(n, c.rows - c.zero if c.zero else c.rows, pick)  # type: ignore[arg-type]
            for n, c, pick in zip(node.args, codes, picks, strict=True)
        )
        product = left * right  # bytes wrap around, and back
        return Rows(product.add_(zero) if zero else product, map, codes[0].dtype, zero, top=max(ends) + zero)

    def _apart(self, node: fx.Node) -> Sum | Joined | None:
        """Codes that are joined or added for integer weights to read: left apart, as bytes."""
        if node not in self.plan.apart or node.kwargs:
            return None
        name, spec = network.op_name(node), network.spec(node)
        if name in ("cat", "add"):
            return self._joined(node, name == "cat")
        codes, options = self.env[node.args[0]], tuple[Any, ...](node.args[1:])  # type: ignore[index]
        if not isinstance(codes, Sum | Joined) or len(node.all_input_nodes) > 1:
            return None
        if node.target is _aten.to.dtype or (name == "mul" and isinstance(options[0], float)):
            factor, dtype = (options[0], codes.dtype) if name == "mul" else (1.0, options[0])
            terms = tuple(replace(c, dtype=dtype, scale=c.ratio * factor) for c in codes.terms)
            found = replace(codes, terms=terms, dtype=dtype)
            return found if found.is_exact and dtype is spec.dtype else None
        alone = len(set(codes.first)) == len(codes.first)  # none is added to another
        whole = isinstance(codes, Sum) or codes.channels == 1  # no image is joined from parts
        if isinstance(codes, Joined) and whole and alone and _pools(node, codes.terms):
            operation = max_pool2d
        elif name == "upsample_nearest2d" and whole:
            operation = operation_of(node)
        else:
            return None
        return replace(codes, terms=tuple(c.with_rows(operation(c.rows, *options)) for c in codes.terms))

    def _joined(self, node: fx.Node, joins: bool) -> Sum | Joined | None:
        spec = network.spec(node)
        operands: Any = node.args[0] if joins else node.args
        dim: Any = (node.args[1] if len(node.args) > 1 else 0) % len(spec.shape) if joins else None  # type: ignore[operator]
        if not is_plain(spec) or dim == 0 or not (joins or all(_shape(n) == spec.shape for n in operands)):
            return None
        terms: list[Any] = []
        first: list[int] = []
        at = 0
        for n in operands:
            value = self.env[n]
            opens = joins and (isinstance(value, Sum) or (isinstance(value, Joined) and value.channels == dim))
            terms += value.terms if opens else [value]
            first += [at + begin for begin in value.first] if opens else [at]
            at += network.spec(n).shape[dim] if joins else 0
        if not all(isinstance(c, Rows) and c.is_scaled_code and c.dtype is spec.dtype for c in terms):
            return None
        found = Joined(tuple(terms), spec.dtype, dim, tuple(first)) if joins else Sum(tuple(terms), spec.dtype)
        return found if found.is_exact and terms[0].rows.device.type == "cpu" else None

    def _scaled(self, node: fx.Node) -> Rows | None:
        """Codes, or plain numbers, times a number: left to whoever reads them."""
        if node.target is not _aten.mul.Tensor or node.kwargs or not isinstance(node.args[1], float):
            return None
        found = self.env[node.args[0]]  # type: ignore[index]
        if not isinstance(found, Rows) or found.dtype is not network.spec(node).dtype:  # whole numbers times a real one
            return None
        if (found.is_code or found.is_plain) and isinstance(found.rows, Tensor):
            return replace(found, scale=node.args[1])
        return None

    def _affine(self, node: fx.Node) -> Rows | None:
        """Numbers times, or plus, one of each channel in float64: left to whoever reads them, for one pass over all."""
        if node not in self.plan.columns:
            return None
        (values, channels), found = self.plan.columns[node], self.env[node.args[0]]  # type: ignore[index]
        if not isinstance(found, Rows) or found.dtype is not torch.float64:
            return None
        bare = found.top == found.zero == 0 and found.grid is None and found.bias is None
        if not bare or not isinstance(found.rows, Tensor) or found.rows.device.type != "cpu":
            return None
        if node.target is _aten.mul.Tensor:
            return replace(found, scale=values, channels=channels) if found.scale is None else None
        return replace(found, bias=values) if found.is_exact_sum and found.channels == channels else None

    def _rounded(self, node: fx.Node) -> Rows | None:
        """Numbers that are rounded to fixed point: left to whoever reads them."""
        rounding = self.graph.get_submodule(str(node.target))
        found = self.env[node.all_input_nodes[0]]
        if not isinstance(rounding, FixedPoint) or not isinstance(found, Rows) or found.dtype is not torch.float64:
            return None
        plain = found.is_plain or (found.top == 0 and isinstance(found.scale, float))
        return replace(found, grid=(rounding.exponent, rounding.limit)) if plain and not found.grid else None

    def _added(self, node: fx.Node) -> Sum | None:
        """A sum that neurons will read: left to them."""
        if node.target is not _aten.add.Tensor or node.kwargs or len(node.args) != 2:
            return None
        if not self._for_neurons(node):
            return None
        values = []
        for n in node.args:
            value = self.env[n] if isinstance(n, fx.Node) else None
            if not isinstance(value, Rows) or network.spec(n).shape != network.spec(node).shape:  # type: ignore[arg-type]
                return None
            values.append(value)
        first, second = values
        return Sum((first, second), first.dtype) if first.dtype == second.dtype else None

    def _for_neurons(self, node: fx.Node) -> bool:
        """Whether neurons alone read a value, and so may add it up."""
        users = list(node.users)
        read = len(users) == 1 and (users[0] in self.plan.neurons or users[0] in self.plan.clamps)
        return read and is_plain(network.spec(node))

    def _for_scan(self, node: fx.Node) -> bool:
        """Whether neurons alone read a value, or the sum that it is part of."""
        user = next(iter(node.users))
        added = len(node.users) == 1 and user.target is _aten.add.Tensor and is_plain(network.spec(node))
        return self._for_neurons(user if added else node)

    # -- operations in general ---------------------------------------------------------------------------------------

    def _operation(self, node: fx.Node, codes: Rows | None = None) -> Any:
        """Any operation, on the rows in which an operand changed; on bytes where these are all ``codes``."""
        operands = {n: self.env[n] for n in node.all_input_nodes if not is_size(n)}
        streams = {n: v.map for n, v in operands.items() if isinstance(v, Rows | Apart)}
        index = bias_of(node)
        if streams:
            map, picks = union(list(streams.values()))
            for n, pick in zip(streams, picks, strict=True):
                value: Any = operands[n]
                operands[n] = self._picked(n, value.rows if codes is not None else value.value, pick)
                del value
            rows = len(picks[0]) if picks[0] is not None else self._count(operands, streams)
        else:
            map, rows = self.still, self.images

        def fetch(n: fx.Node) -> Any:
            return self._size(n, rows) if is_size(n) else operands[n]

        if node.target is _aten.max_pool3d.default:  # refuses the layout that 2-d convolutions leave
            operands = {n: v.contiguous() for n, v in operands.items()}
        args, kwargs = fx.map_arg(node.args, fetch), fx.map_arg(node.kwargs, fetch)
        spec: Spec | None = node.meta.get("spec")
        if codes is None:  # the numbers are at hand: what they were made of goes before the operation, not after it
            self._release(node)
        if index is not None and self.bias_shares is not None:
            bare = without_bias(node, args, index)  # type: ignore[arg-type]
            return self._with_bias(node, Rows(bare, map, bare.dtype), args[index])  # type: ignore[index]
        if node.op == "call_module":
            result = self.graph.get_submodule(str(node.target))(*args)
        else:
            result = operation_of(node)(*args, **kwargs)
        if spec.batch_dim is None if spec else not streams:  # the same for every image, as a mask of its shape alone
            return result
        if codes is not None:
            return codes.with_rows(result, map)
        return Rows(result, map, spec.dtype if spec else torch.float32)

    def _count(self, operands: dict[fx.Node, Any], streams: dict[fx.Node, Tensor]) -> int:
        """How many rows the operands have."""
        for n in streams:
            if isinstance(operands[n], Tensor) and "spec" in n.meta and network.spec(n).batch_dim is not None:
                dim = network.spec(n).batch_dim or 0
                return operands[n].shape[dim] // network.spec(n).shape[dim]
        return int(max(map.max() for map in streams.values())) + 1

    def _picked(self, node: fx.Node, value: Any, pick: Tensor | None) -> Any:
        if pick is None:
            return value
        spec = network.spec(node)
        if is_plain(spec):
            return gather(value, pick)
        if scattered(spec) or not isinstance(value, Tensor):
            raise StageError(
                f"{network.describe(node)} scatters the images over its rows, so it cannot be brought together with "
                "what changes at other steps. Run this network with the reference engine."
            )
        rows = value.shape[spec.batch_dim or 0] // spec.shape[spec.batch_dim or 0]
        return images_back(images_first(value, spec, rows).index_select(0, to_device(pick, value.device)), spec)

    def _with_bias(self, node: fx.Node, bare: Rows, bias: Tensor) -> Rows:
        """Add to each row its share of the bias."""
        assert self.bias_shares is not None
        spec = network.spec(node)
        if scattered(spec):
            raise StageError(
                f"{network.describe(node)} scatters the images over its rows, so a bias cannot be released over time "
                "there. Use a Pulse bias encoding, or the reference engine."
            )
        map, (pick, which) = union([bare.map, self.bias_shares.map])
        value = self._picked(node, bare.value, pick)
        shares = to_device(gather(self.bias_shares.rows, which).to(value.dtype), value.device)
        dim = spec.batch_dim or 0
        merged = value.shape[dim] // shares.shape[0]
        along = shares.repeat_interleave(merged) if spec.outer else shares.repeat(merged)
        along = along.reshape([-1 if i == dim else 1 for i in range(value.dim())])
        return Rows(value + along * shaped_bias(node, bias), map, value.dtype)

    def _size(self, node: fx.Node, rows: int) -> Any:
        """A size, for a batch of so many rows."""
        if network.op_name(node).startswith("sym_size"):
            source, dim = node.args
            spec = network.spec(source)  # type: ignore[arg-type]
            return spec.shape[dim] * (rows if spec.batch_dim == dim else 1)  # type: ignore[index,operator]
        args = fx.map_arg(node.args, lambda n: self._size(n, rows))
        return getattr(operator, network.op_name(node), node.target)(*args)  # type: ignore[operator,misc]

    # -- neurons -----------------------------------------------------------------------------------------------------

    def _neurons(self, node: fx.Node, neuron: STBIF) -> Rows:
        before, smooth = self.plan.smooth.get(node, (node.args[0], None))
        if before in self.plan.clamps:
            before = before.args[0]  # type: ignore[union-attr]
        drive, spec, name = self.env[before], network.spec(node), str(node.target)  # type: ignore[index]
        if not isinstance(drive, Rows | Sum | Joined):  # a drive that depends on no image
            drive = Rows(drive.expand(self.images, *drive.shape[1:]), self.still, drive.dtype)
        drive = drive.numbers() if isinstance(drive, Joined) else drive
        plain = is_plain(spec)
        if not plain:
            value = drive.value
            rows = value.shape[spec.batch_dim or 0] // spec.shape[spec.batch_dim or 0]
            drive = Rows(images_first(value, spec, rows).contiguous(), drive.map, drive.dtype)
        start = self.tracers.get(name)
        if start is None and node in self.plan.starting:
            rows = (drive.terms[0] if isinstance(drive, Sum) else drive).rows
            shape, device = (self.images, *rows.shape[1:]), neuron.threshold.device
            start = neuron.start(torch.empty(shape, dtype=neuron.levels.storage, device=device))
        theta, every = self.plan.thresholds[node], self.every
        what = scan(drive, start, neuron.threshold, neuron.levels, neuron.slew, theta, smooth, every=every)
        self.moves[name] = what.moves
        if self.keep_codes:
            self.codes[name] = what.codes
        return what.codes if plain else what.codes.with_rows(images_back(what.codes.rows, spec))

    def _unfold(self, node: fx.Node) -> Tensor:
        value, spec = self.env[node], network.spec(node)
        numbers = value.value
        rows = numbers.shape[spec.batch_dim or 0] // spec.shape[spec.batch_dim or 0]
        first = images_first(numbers, spec, rows)
        return gather(first, value.map.flatten()).unflatten(0, tuple(value.map.shape))


def _pools(node: fx.Node, codes: Sequence[Rows]) -> bool:
    """Whether a node takes the greatest of codes in windows of images, which is that of their bytes."""
    if node.target is not _aten.max_pool2d.default or any(max(d) > 1 for d in node.args[4:5]):  # type: ignore[arg-type]
        return False
    if len(network.spec(node).shape) != 4:  # images are the channels of one
        return False
    return not any(isinstance(c.scale, float) and c.scale < 0 for c in codes)


def _shape(operand: Any) -> tuple[int, ...] | None:
    return network.spec(operand).shape if isinstance(operand, fx.Node) and "spec" in operand.meta else None
