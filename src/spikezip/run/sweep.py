"""The sweep engine: layer by layer, a block of time steps folded into the batch."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network, ops
from spikezip.graph.network import Spec
from spikezip.graph.ops import Kind
from spikezip.kernels import Scan, scan
from spikezip.run.result import Observer, Outcome, Run, State
from spikezip.run.step import bias_of, images_back, images_first, shaped_bias, without_bias
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@torch.no_grad()
def sweep(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    *,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    block: int = 8,
) -> Run:
    """Run an SNN with one call per operation for a whole block of steps.

    The same steps as :func:`reference`, so the same result wherever arithmetic is exact. What does not depend on any
    neuron is computed once; images that have settled leave the batch; the run ends when all have.

    Args:
        snn: the network.
        inputs: its inputs, ``[B, ...]`` each.
        steps: how many steps at most.
        state: tracers to start from; zeros if not given.
        stop: end as soon as every image is settled.
        observe: told every layer's tracers, block by block, for the images still running.
        block: time steps per block.

    Returns:
        The :class:`Run`, of as many steps as were run.

    Raises:
        StageError: a neuron layer's values do not keep an image's together, so time cannot be folded into the batch.
    """
    _check_foldable(snn)
    images = inputs[0].shape[0]
    t_off = snn.t_off(steps)
    tracers: dict[str, Tensor] = {k: v.clone() for k, v in state.tracers.items()} if state else {}
    running = torch.arange(images)
    settled_at = torch.full((images,), -1, dtype=torch.int64)
    spikes = {name: torch.zeros((steps, images), dtype=torch.int64) for name, _ in snn.layers}
    negative = {name: torch.zeros((steps, images), dtype=torch.int64) for name, _ in snn.layers}
    outputs: list[Tensor] = []
    fixed: dict[fx.Node, Any] = {}
    done = 0
    while done < steps and running.numel():
        times = range(done + 1, min(done + block, steps) + 1)
        part = _Block(snn, inputs, running, times, steps, tracers, fixed)
        results = part.run()
        behind = torch.zeros((len(times), running.numel()), dtype=torch.bool)
        for name, what in part.scans.items():
            spikes[name][done : times[-1], running] = what.spikes.cpu()
            negative[name][done : times[-1], running] = what.negative.cpu()
            behind |= what.behind.cpu()
            _store(tracers, name, running, what.codes[-1], images)
            if observe:
                observe(name, times[0], running, what.codes)
        outputs = outputs or [r.new_empty((steps, images, *r.shape[2:])) for r in results]
        for whole, r in zip(outputs, results, strict=True):
            whole[done : times[-1], running.to(whole.device)] = r
            whole[times[-1] :, running.to(whole.device)] = r[-1]
        behind[: max(t_off - times[0], 0)] = True
        last_behind = (behind * torch.arange(1, len(times) + 1).unsqueeze(1)).amax(0)
        ended = last_behind < len(times)
        first = ended & (settled_at[running] < 0)  # without stop, settled images are still here
        settled_at[running[first]] = (done + last_behind + 1)[first]
        done = times[-1]
        if stop:
            running = running[~ended]
    outcome = Outcome.SETTLED if bool((settled_at > 0).all()) else Outcome.STEP_LIMIT
    if outcome is Outcome.SETTLED and stop:
        done = min(done, int(settled_at.max()))
    return Run(
        outputs=tuple(whole[:done] for whole in outputs),
        settled_at=settled_at,
        outcome=outcome,
        spikes={k: v[:done] for k, v in spikes.items()},
        negative={k: v[:done] for k, v in negative.items()},
        codes=tracers,
        t_off=t_off,
        engine="sweep",
    )


def _check_foldable(snn: SpikingNetwork) -> None:
    for node, _ in network.modules_of(snn.graph, STBIF):
        if not (network.spec(node).outer or network.spec(node).inner):
            raise StageError(
                f"The values of {network.origin(node)!r} do not keep one image's together, so time steps cannot be folded "
                "into the batch. Run this network with the reference engine."
            )


def _store(tracers: dict[str, Tensor], name: str, running: Tensor, codes: Tensor, images: int) -> None:
    if running.numel() == images:
        tracers[name] = codes.clone()
    else:
        tracers[name][running.to(codes.device)] = codes


@dataclass(frozen=True)
class _Sizes:
    """A computed size for one step, and for all steps of the block folded into the batch."""

    single: Any
    folded: Any


class _Block:
    """One pass over the graph for one block of steps; ``env`` holds values, ``folded`` which of them hold all steps."""

    def __init__(
        self,
        snn: SpikingNetwork,
        inputs: tuple[Tensor, ...],
        running: Tensor,
        times: range,
        steps: int,
        tracers: dict[str, Tensor],
        fixed: dict[fx.Node, Any],
    ):
        self.snn, self.graph = snn, snn.graph
        self.inputs: Iterator[Tensor] = iter(inputs)
        self.everyone = running.numel() == inputs[0].shape[0]
        self.running = running.to(inputs[0].device)
        self.images, self.depth = running.numel(), len(times)
        self.shares = [snn.encoding.share(t, steps) for t in times]
        self.bias_shares = [snn.bias_encoding.share(t, steps) for t in times]
        self.tracers = tracers
        self.fixed = fixed  # what depends on no neuron, at the full share, for all images: computed once
        self.complete = all(s == 1.0 for s in self.shares + self.bias_shares)
        self.env: dict[fx.Node, Any] = {}
        self.folded: set[fx.Node] = set()
        self.scans: dict[str, Scan] = {}

    def run(self) -> list[Tensor]:
        """The outputs, ``[K, B, ...]`` each."""
        last_use = {n: user for user in self.graph.graph.nodes for n in user.all_input_nodes}
        free: dict[fx.Node, list[fx.Node]] = {}
        for value, user in last_use.items():
            free.setdefault(user, []).append(value)
        for node in self.graph.graph.nodes:
            if node.op == "output":
                break
            self._compute(node)
            for value in free.get(node, []):
                del self.env[value]
        return [self._unfold(node) for node in network.outputs(self.graph)]

    def _compute(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._input(node, next(self.inputs))
        elif node.op == "get_attr":
            self.env[node] = network.get_tensor(self.graph, node.target)
        elif node.op == "call_module" and isinstance(
            neuron := self.graph.get_submodule(str(node.target)), STBIF
        ):
            self._neurons(node, neuron)
        elif any(n in self.folded for n in node.all_input_nodes):
            self._folded(node)
        else:
            self._single(node)

    def _input(self, node: fx.Node, x: Tensor) -> None:
        x = self._of_running(x)
        if x.is_floating_point() and any(s != 1.0 for s in self.shares):
            self.env[node] = torch.cat([s * x for s in self.shares])
            self.folded.add(node)
        else:
            self.env[node] = x

    def _of_running(self, value: Tensor) -> Tensor:
        return value if self.everyone else value.index_select(0, self.running)

    def _single(self, node: fx.Node) -> None:
        """An operation none of whose operands changes within the block."""
        if "spec" not in node.meta and ops.kind(node) is Kind.SIZE:
            self.env[node] = self._sizes(node)
            return
        independent = self.complete and not _depends_on_neurons(node)
        if independent and node in self.fixed:
            self.env[node] = self._pick(node, self.fixed[node])
            return
        index = bias_of(node)
        args, kwargs = self._operands(node, folded=False)
        if index is not None and any(s != 1.0 for s in self.bias_shares):
            bare, bias = without_bias(node, args, index), shaped_bias(node, args[index])
            self.env[node] = torch.cat([bare + s * bias for s in self.bias_shares])
            self.folded.add(node)
            return
        self.env[node] = self._call(node, args, kwargs)
        if independent and self.everyone:
            self.fixed[node] = self.env[node]

    def _pick(self, node: fx.Node, value: Any) -> Any:
        spec = node.meta.get("spec")
        if self.everyone or spec is None or spec.batch_dim is None:
            return value
        first = images_first(value, spec, value.shape[spec.batch_dim] // spec.shape[spec.batch_dim])
        return images_back(first.index_select(0, self.running), spec)

    def _folded(self, node: fx.Node) -> None:
        """An operation on all steps of the block at once."""
        if "spec" not in node.meta and ops.kind(node) is Kind.SIZE:
            self.env[node] = self._sizes(node)
            return
        index = bias_of(node)
        args, kwargs = self._operands(node, folded=True)
        if index is not None and any(s != 1.0 for s in self.bias_shares):
            bare, bias = without_bias(node, args, index), shaped_bias(node, args[index])
            self.env[node] = bare + self._shares_along(node, bare) * bias
        else:
            self.env[node] = self._call(node, args, kwargs)
        self.folded.add(node)

    def _shares_along(self, node: fx.Node, value: Tensor) -> Tensor:
        """The share of the bias that each row of a folded value receives."""
        spec = network.spec(node)
        dim = spec.batch_dim or 0
        shares = value.new_tensor(self.bias_shares)
        merged = value.shape[dim] // (self.depth * self.images)
        if spec.outer:
            rows = shares.repeat_interleave(self.images * merged)
        elif spec.inner:
            rows = shares.repeat_interleave(self.images).repeat(merged)
        else:
            raise StageError(
                f"{network.describe(node)} scatters the images over its rows, so a bias cannot be released over time there. "
                "Use a Pulse bias encoding, or the reference engine."
            )
        return rows.reshape([-1 if i == dim else 1 for i in range(value.dim())])

    def _call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))(*args)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _operands(self, node: fx.Node, *, folded: bool) -> tuple[tuple, dict]:
        def fetch(n: fx.Node) -> Any:
            value = self.env[n]
            if isinstance(value, _Sizes):
                return value.folded if folded else value.single
            if folded and n not in self.folded and isinstance(value, Tensor) and n.meta.get("spec"):
                return self._spread(value, network.spec(n))
            return value

        return fx.map_arg(node.args, fetch), fx.map_arg(node.kwargs, fetch)  # type: ignore[return-value]

    def _spread(self, value: Tensor, spec: Spec) -> Tensor:
        """A value that is the same at every step, repeated for each (time outermost within the batch dimension)."""
        if spec.batch_dim is None or self.depth == 1:
            return value
        if spec.inner:
            return images_back(torch.cat([images_first(value, spec, self.images)] * self.depth), spec)
        return torch.cat([value] * self.depth, spec.batch_dim)

    def _sizes(self, node: fx.Node) -> _Sizes:
        if network.op_name(node).startswith("sym_size"):
            source, dim = node.args
            assert isinstance(source, fx.Node)
            size = self.env[source].shape[dim]  # type: ignore[index]
            grows = network.spec(source).batch_dim == dim
            if source in self.folded:
                return _Sizes(size // self.depth if grows else size, size)
            return _Sizes(size, size * self.depth if grows else size)
        single = fx.map_arg(node.args, lambda n: self.env[n].single)
        folded = fx.map_arg(node.args, lambda n: self.env[n].folded)
        function = getattr(operator, network.op_name(node), node.target)
        return _Sizes(function(*single), function(*folded))  # type: ignore[operator,misc]

    def _neurons(self, node: fx.Node, neuron: STBIF) -> None:
        source, spec, name = node.args[0], network.spec(node), str(node.target)
        assert isinstance(source, fx.Node)
        drive = self._by_step(self.env[source], spec, source in self.folded)
        start = self.tracers.get(name)
        start = torch.zeros_like(drive[0]) if start is None else self._of_running(start)
        what = scan(drive, start, neuron.threshold, neuron.levels, neuron.slew, self.depth)
        self.scans[name] = what
        value = (what.codes * neuron.threshold).flatten(0, 1)
        self.env[node] = images_back(value, spec)
        self.folded.add(node)

    def _by_step(self, value: Tensor, spec: Spec, folded: bool) -> Tensor:
        """``[K, B, ...]``, or ``[1, B, ...]`` for a value that is the same at every step."""
        depth = self.depth if folded else 1
        return images_first(value, spec, depth * self.images).unflatten(0, (depth, self.images))

    def _unfold(self, node: fx.Node) -> Tensor:
        values = self._by_step(self.env[node], network.spec(node), node in self.folded)
        return values.expand(self.depth, *values.shape[1:])


def _depends_on_neurons(node: fx.Node) -> bool:
    # Written once per graph: whether a node lies behind any neuron.
    known = node.meta.get("behind_neurons")
    if known is None:
        for n in node.graph.nodes:
            owner = node.graph.owning_module
            neuron = n.op == "call_module" and isinstance(owner.get_submodule(str(n.target)), STBIF)  # type: ignore[union-attr]
            n.meta["behind_neurons"] = neuron or any(m.meta["behind_neurons"] for m in n.all_input_nodes)
        known = node.meta["behind_neurons"]
    return known
