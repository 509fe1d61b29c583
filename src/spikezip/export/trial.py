"""A first run of a graph from a file, on shapes alone: nothing is computed, and nothing large is ever made."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from spikezip.errors import BundleError, CaptureError
from spikezip.export.vocabulary import FUNCTIONS
from spikezip.graph import network, ops, purity, shapes
from spikezip.graph.ops import Kind
from spikezip.graph.quiet import quiet

MOST_VALUES = 1 << 31  #: in one node's value, for a few images
MOST_CONSTANTS = 1 << 26  #: in one constant that the graph computes by itself
_MOST_PARTS = 1 << 12  #: into which one operation may cut a tensor
_MOST_DIMS = 64


def check_graph(gm: fx.GraphModule) -> None:
    """Write each node's Spec, and raise BundleError unless the graph runs for any batch size, is pure and of sane size.

    Modules must hand on shapes and types (put ``nn.Identity`` in place of neurons).
    """
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        # The batch sizes that shapes.annotate runs, so that it meets nothing too large. Only where sizes are computed
        # may a smaller batch make something larger.
        computed = any(network.op_name(n).startswith("sym_") for n in gm.graph.nodes)
        for batch in (1, 2, 3) if computed else (3,):
            _Trial(gm).run_batch(batch)
        try:
            shapes.annotate(gm)
            for node in gm.graph.nodes:
                if "spec" in node.meta:
                    node.meta["dtype"] = network.spec(node).dtype
            purity.refuse_impure(gm)
        except CaptureError as reason:
            raise BundleError(str(reason)) from None
    _check_streams(gm)


def _check_streams(gm: fx.GraphModule) -> None:
    for node in network.outputs(gm):
        if "spec" not in node.meta or network.spec(node).batch_dim is None:
            raise BundleError(f"the output {node.name!r} does not depend on the network's input")
    for node in gm.graph.nodes:
        if node.op == "call_module":
            drive = node.args[0]
            dtype = network.spec(drive).dtype if "spec" in drive.meta else torch.bool
            if not dtype.is_floating_point and not dtype.is_complex:
                raise BundleError(f"the module {node.target!r} receives no floating-point tensor")
            if network.spec(drive).batch_dim is None:
                raise BundleError(f"the module {node.target!r} receives a constant; a neuron needs a signal")


class _Trial(fx.Interpreter):
    """Runs a graph on shapes, looking at each operand before and each result behind an operation."""

    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm)
        self.extra_traceback = False
        self._inputs = network.info(gm).inputs
        self._constant: set[fx.Node] = set()

    def run_batch(self, batch: int) -> None:
        # No fallback kernels: an operation without a shape rule would really be computed.
        with FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False), torch.no_grad():
            super().run(*[torch.empty((batch, *s.shape), dtype=s.dtype) for s in self._inputs])

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            self._look_at_operands(n)
        try:
            result = super().run_node(n)
        except Exception as reason:  # whatever torch makes of operands that were written by a stranger
            text = next((line for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
            raise BundleError(f"the node {n.name!r} ({network.op_name(n)}) cannot be computed: {text[:300]}") from None
        if n.op == "get_attr" or (n.op == "call_function" and all(i in self._constant for i in n.all_input_nodes)):
            self._constant.add(n)
        if n.op != "output":
            self._look_at(n, result)
        return result

    def _look_at_operands(self, n: fx.Node) -> None:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = [*args, *kwargs.values()]
        if n.target is operator.getitem:
            sound = len(args) == 2 and isinstance(args[0], tuple | list) and type(args[1]) is int
        elif n.target in FUNCTIONS.values():
            # Only ever on sizes: a list times a large number would be a large list.
            sound = all(type(a) in (int, float) for a in given)
        else:
            # torch takes time with the square of the dimensions, and a list has one number for each of them.
            parts = "[]" in str(n.target._schema).rpartition("->")[2]  # type: ignore[union-attr]
            lists = [a for a in given if isinstance(a, list | tuple)]
            sound = all(len(a) <= (_MOST_PARTS if parts or _of_tensors(a) else _MOST_DIMS) for a in lists)
            if parts and any(isinstance(a, Tensor) and max(a.shape, default=0) > _MOST_PARTS for a in given):
                raise BundleError(f"the node {n.name!r} may cut a tensor into more than {_MOST_PARTS} parts")
        if not sound:
            raise BundleError(f"the node {n.name!r} ({network.op_name(n)}) has operands that it does not take")

    def _look_at(self, n: fx.Node, value: Any) -> None:
        if isinstance(value, tuple | list):
            for part in value:
                self._look_at(n, part)
        elif isinstance(value, Tensor):
            most = MOST_CONSTANTS if n in self._constant and n.op == "call_function" else MOST_VALUES
            if value.numel() > most or value.dim() > _MOST_DIMS or value.layout is not torch.strided:
                raise BundleError(f"the node {n.name!r} makes a tensor of {tuple(value.shape)[:8]}: too large")
        elif isinstance(value, int | float):
            if not -(1 << 62) < value < 1 << 62:
                raise BundleError(f"the node {n.name!r} computes a size of more than 62 bits")
        elif value is not None:
            raise BundleError(f"the node {n.name!r} makes a {type(value).__name__}, which is no tensor")


def _of_tensors(values: Any) -> bool:
    return all(isinstance(v, Tensor) for v in values)


def check_weights(gm: fx.GraphModule, tensors: dict[str, Tensor]) -> None:
    """Raise BundleError for a tensor with NaN or infinity; -infinity may stand in a mask that is added to scores."""
    constants = [n for n in gm.graph.nodes if n.op == "get_attr"]
    weights = {str(n.target) for n in constants if any(ops.kind(user) is Kind.SYNAPTIC for user in n.users)}
    masks = {str(n.target) for n in constants} - weights
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all()):
            continue
        mask = name in masks and not isinstance(tensor, torch.nn.Parameter) and not tensor.is_complex()
        if not mask or bool(torch.isnan(tensor).any()) or bool((tensor == torch.inf).any()):
            raise BundleError(f"the tensor {name!r} holds NaN or infinity")
