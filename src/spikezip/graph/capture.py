"""From a PyTorch module to a graph of ATen operations, by ``torch.export``."""

from __future__ import annotations

import contextlib
import inspect
import keyword
import linecache
import operator
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.ao.quantization import FakeQuantizeBase
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.proxy_tensor import py_sym_types
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils._sympy.functions import Max, Min

from spikezip.errors import CaptureError, InputError, StageError
from spikezip.graph import network, purity, rewrite, shapes
from spikezip.graph.batch_size import FixedBatchError, FreeBatch
from spikezip.graph.modes import default_device
from spikezip.graph.network import InputSpec, Stage
from spikezip.graph.picks import spell_picks
from spikezip.graph.quiet import evaluating, quiet
from spikezip.graph.recurrent import RECURRENT

_aten = torch.ops.aten

#: Operations that hand their input on unchanged at inference.
_IDENTITIES = {
    _aten.clone.default,
    _aten.detach.default,
    _aten.detach_.default,
    _aten.alias.default,
    _aten.lift_fresh_copy.default,
    _aten.contiguous.default,
}
#: Identities while their ``train`` argument (the third) is off; random otherwise.
_DROPOUTS = {
    _aten.dropout.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
    _aten.feature_alpha_dropout.default,
}


def _squeeze(x: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    """A squeeze that keeps the batch: of the dimensions of one, those that are one for every batch.

    Departs: a model that squeezes a batch of one away answers without it; the network keeps it, as for any other.
    """
    named = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    kept = [i for i in named if isinstance(x.shape[i], int)]
    return _aten.squeeze.dims(x, kept) if len(kept) < len(named) else NotImplemented


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``sum_ij x_i W_oij y_j``: a linear layer that reads the products ``x_i y_j``."""
    return F.linear((x.unsqueeze(-1) * y.unsqueeze(-2)).flatten(-2), weight.flatten(1), bias)


def _lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    if isinstance(weight, Tensor):
        return start + weight * (end - start)
    return (1 - weight) * start + weight * end


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b if value == 1 else value * (a * b))


def _power(x: Tensor, exponent: float = 2) -> Tensor:
    # Of whole numbers, ** 2.0 is a float.
    return x * x if exponent == 2 and (isinstance(exponent, int) or x.is_floating_point()) else NotImplemented


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    # Where the number of classes is given, the shape does not depend on the values.
    return (x.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).long() if num_classes > 0 else NotImplemented


def _copy(x: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``h[:, 1:3] = value`` puts there."""
    value = value.to(x.dtype)
    return value if value.shape == x.shape else value.expand(x.shape)


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    """Of the other's type, whose values have no say in it."""
    return x.to(other.dtype)


_decompositions = core_aten_decompositions()
#: Operations that hide products, a fixed shape, or a mere place, or have no derivative: spelled out, so that these
#: receive spikes, are counted, and can be saved and trained.
_SPELLED = {
    **{
        op: _decompositions[op]
        for op in (
            _aten.einsum.default,
            _aten.inner.default,
            _aten.tensordot.default,
            _aten.glu.default,
            _aten.floor_divide.default,
        )
    },
    _aten.bilinear.default: _bilinear,
    _aten.copy.default: _copy,
    _aten.type_as.default: _type_as,
    _aten.lerp.Tensor: _lerp,
    _aten.lerp.Scalar: _lerp,
    _aten.addcmul.default: _addcmul,
    _aten.multiply.Tensor: operator.mul,
    _aten.one_hot.default: _one_hot,
    _aten.square.default: _power,
    _aten.pow.Tensor_Scalar: _power,
}
#: Operations whose result for a batch of one has another shape.
_SQUEEZES = dict.fromkeys((_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims), _squeeze)
_MAKERS = {
    _aten.new_zeros.default: _aten.zeros.default,
    _aten.new_ones.default: _aten.ones.default,
    _aten.new_full.default: _aten.full.default,
}
#: Sums of a value and a number, which take their factor by position.
_BY_POSITION = {_aten.add.Scalar, _aten.sub.Scalar, _aten.rsub.Scalar}
#: Operations that need their operand's values side by side.
_BY_STRIDE = {_aten.view_as_complex.default}
_CONTIGUOUS = {"memory_format": torch.contiguous_format}
#: What a model is run and exported by: its lines are not the model's.
_MACHINERY = (__file__, *(str(Path(torch.__file__).parent / part) for part in ("export", "_export", "_dynamo", "fx")))
_TORCH = str(Path(torch.__file__).parent)
#: Sizes of the batch for which a graph is to hold.
_BATCHES = (*range(2, 65), *(2**i for i in range(7, 17)))
#: What is wrong with a model that answers differently when it is called again.
_KEEPS = (
    "it keeps something from call to call outside its buffers, or draws at random. A network to be converted must be "
    "stateless: pass the state in and out instead."
)
#: What gives the greatest (or least) values alone, where nobody reads their places.
_EXTREMES = {_aten.max.dim: _aten.amax.default, _aten.min.dim: _aten.amin.default}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default}


@default_device()
@torch.random.fork_rng(devices=[])
def capture(model: nn.Module, example: Tensor | Sequence[Tensor]) -> fx.GraphModule:
    """Capture a trained model as a graph that later stages can read and rewrite.

    The model is captured in evaluation mode with a free batch size. It is not changed: the graph owns copies of its
    parameters, under the names they had (with ``_`` for what is no letter, digit or ``_``); what its author froze is
    frozen there. Every node knows the module it came from (:func:`network.origin`).

    Args:
        model: any ``nn.Module`` that ``torch.export`` can capture.
        example: one input of shape ``[B, ...]`` (any ``B``), or a sequence of such inputs, as the model takes them
            by position. Only shapes and types matter, and of whole numbers the range.

    Returns:
        The ANN as a ``torch.fx.GraphModule``; it takes the model's inputs and returns its outputs (one tensor, or a
        flat tuple of tensors).

    Raises:
        CaptureError: the model cannot be captured, keeps something from call to call, draws random numbers, mixes the
            samples of a batch, computes in half precision, or holds NaN.
        InputError: the example is not one or more tensors with a batch dimension, or of half precision.

    >>> ann = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4))
    >>> [network.origin(node) for node in ann.graph.nodes if node.op == "call_function"]
    ['0', '1']
    """
    if not isinstance(model, nn.Module):
        made = "its .module()" if isinstance(model, ExportedProgram) else "an nn.Module"
        raise InputError(f"The model is a {type(model).__name__}; pass {made}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{repr(name) if name else 'The model'} is TorchScript, which torch.export does not take. Pass the "
                "module that it was made from, with its weights."
            )
        if isinstance(module, FakeQuantizeBase):
            raise CaptureError(
                f"{repr(name) if name else 'The model'} rounds as torch.ao.quantization has prepared it to. Remove "
                "fake-quantization: convert the float model that prepare_qat was given, with these weights."
            )
    examples = tuple(example) if isinstance(example, Sequence) else (example,)
    _check_examples(examples)
    _check_names(model)
    _check_weights(model)
    twin = _twin(model)
    _check_example(twin, examples)
    program = _export(model, examples)
    if program.graph_signature.buffers_to_mutate:
        name = next(iter(program.graph_signature.buffers_to_mutate.values()))
        raise CaptureError(
            f"The model changes its own buffer {name!r} in forward: its answer depends on what it saw before. "
            "A network to be converted must be stateless: pass the state in and out instead."
        )
    with quiet():
        module = program.module(check_guards=False)
    graph_module = _own(module)
    _mark_cumulative(graph_module, model)
    _normalise(graph_module)
    purity.refuse_impure(graph_module)
    network.mark(graph_module, Stage.ANN, [InputSpec.of(x) for x in examples])
    with quiet():
        shapes.annotate(graph_module)
        spell_picks(graph_module)
    purity.refuse_half_precision(graph_module)
    try:
        purity.refuse_batch_mixing(graph_module)
    except purity.RandomInputError:  # floats may be whole numbers, a mask that is counted to an index
        known = network.info(graph_module)
        inputs = [s.as_whole(x) for s, x in zip(known.inputs, examples, strict=True)]
        network.mark(graph_module, Stage.ANN, inputs, known.notes)
        purity.refuse_batch_mixing(graph_module)
    _check_answers(twin, graph_module)
    _refuse_branches(program, twin, graph_module)
    _check_answers_of(1, twin, graph_module)
    return graph_module


def _twin(model: nn.Module) -> nn.Module:
    """A copy to run, as running may change what the model keeps in its attributes; itself where it cannot be copied."""
    try:
        with quiet():
            return network.copied(model)
    except StageError:
        return model


def _leaves(model: nn.Module, inputs: Sequence[Tensor]) -> list[Any]:
    """What the model itself returns, taken apart; nothing is compiled for it."""
    with evaluating(model), quiet(), torch.compiler.set_stance("force_eager"):
        return tree_leaves(model(*[x.clone() for x in inputs]))


@torch.no_grad()
def _check_example(model: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise CaptureError unless the model itself takes the example."""
    try:
        _leaves(model, [x[:2] for x in examples])
    except Exception as error:
        given = ", ".join(f"{list(x.shape)} {_digits(x)}" for x in examples)
        weights: dict[str, str] = {}
        for name, weight in model.named_parameters():
            weights.setdefault(_digits(weight), name)
        mend = (
            "Give an input of the shape and type that it takes. Inputs are given by position: for a model that takes "
            "them by name, write a module whose forward takes tensors and calls it."
        )
        if weights and any(x.is_floating_point() for x in examples) and not weights.keys() & map(_digits, examples):
            dtype, name = next(iter(weights.items()))
            mend = f"Its weight {name!r} is {dtype}. Convert the model, model.float(), and its inputs, x.float()."
        raise CaptureError(
            f"{type(model).__name__} does not take the example, {given}{_place(model, error)}: {_reason(error)}\n{mend}"
        ) from error


def _digits(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


@torch.no_grad()
def _check_answers(model: nn.Module, ann: fx.GraphModule) -> None:
    """Raise CaptureError unless the model gives the graph's outputs, the first time and the second."""
    generator, device = torch.Generator().manual_seed(1), network.device(ann)
    inputs = [s.draw(2, generator, device) for s in network.info(ann).inputs]
    (wanted, beside), (again, beside_again) = (_sorted_out(_leaves(model, inputs)) for _ in range(2))
    found = tree_leaves(ann(*inputs))
    if beside != beside_again or len(wanted) != len(again):
        raise CaptureError(f"Called twice on the same input, the model returns {beside}, then {beside_again}: {_KEEPS}")
    if len(found) != len(wanted):
        raise CaptureError(
            f"The model returns {len(wanted)} tensors, and {len(found)} were captured: forward depends on what "
            "torch.export does not see. Compute the answer from the input with tensor operations alone."
        )
    for output, graph, first, second in zip(network.outputs(ann), found, wanted, again, strict=True):
        if not _close(first, second):
            raise CaptureError(
                f"Called twice on the same input, the model gives two answers at {network.describe(output)}: {_KEEPS}"
            )
        if not _close(first, graph):
            raise CaptureError(
                f"At {network.describe(output)} the captured graph and the model answer differently: forward depends "
                "on what torch.export does not see. Compute the answer from the input with tensor operations alone."
            )


@torch.no_grad()
def _check_answers_of(size: int, model: nn.Module, ann: fx.GraphModule) -> None:
    """Raise CaptureError where the model answers a batch of that size with other values than the graph.

    For torch.export a graph holds for two samples and more. A model that fails on a single one, or drops its dimension,
    is let be.
    """
    generator, device = torch.Generator().manual_seed(1), network.device(ann)
    inputs = [s.draw(size, generator, device) for s in network.info(ann).inputs]
    try:
        alone = _sorted_out(_leaves(model, inputs))[0]
    except Exception:  # the model's own; it has answered two
        return
    for output, graph, one in zip(network.outputs(ann), tree_leaves(ann(*inputs)), alone, strict=False):
        if graph.numel() == one.numel() and not _close(one.flatten(), graph.flatten()):
            which = "a single sample" if size == 1 else f"a batch of {size}"
            raise CaptureError(
                f"At {network.describe(output)} the model answers {which} otherwise than the same samples in another "
                "batch: it chooses by the size of the batch. A network to be converted answers each sample by itself: "
                "go by the size of images or channels, x.size(1), not of the batch, x.size(0)."
            )


def _sorted_out(leaves: list[Any]) -> tuple[list[Tensor], list[Any]]:
    """The tensors among leaves, which the graph returns, and what lies beside them."""
    return [x for x in leaves if isinstance(x, Tensor)], [x for x in leaves if not isinstance(x, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return a.shape == b.shape and torch.equal(a, b)
    a, b = torch.nan_to_num(a.double()), torch.nan_to_num(b.double())
    return float((a - b).abs().amax()) <= 1e-3 * float(a.abs().amax()) if a.numel() else True


def _check_examples(examples: tuple[Tensor, ...]) -> None:
    if not examples:
        raise InputError("No example input was given. Pass one tensor of shape [B, ...], as the model takes it.")
    for index, x in enumerate(examples):
        if not isinstance(x, Tensor):
            raise InputError(
                f"Example input {index} is a {type(x).__name__}; pass a torch.Tensor of shape [B, ...]. For a model "
                "that takes others, write a module whose forward takes tensors and calls it."
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"Example input {index} is {x.dtype}: sums of so few digits are exact in no engine. Convert the model, "
                "model.float(), and its inputs, x.float()."
            )
        if x.dim() < 1 or x.shape[0] < 1:
            raise InputError(
                f"Example input {index} has shape {tuple(x.shape)}; it needs a batch dimension in front, of size ≥ 1."
            )
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"Example input {index} holds NaN or infinity. Pass real data.")


def _check_names(model: nn.Module) -> None:
    """Raise CaptureError where something of the model's has a name that no graph can hold."""
    own = [name for name, _ in (*model.named_children(), *model.named_parameters(), *model.named_buffers())]
    for name in dict.fromkeys(name.split(".")[0] for name in own):
        taken = name in ("meta", "_graph") or (hasattr(fx.GraphModule, name) and not hasattr(nn.Module, name))
        if taken or keyword.iskeyword(name):
            raise CaptureError(
                f"{name!r} of {type(model).__name__} has a name that torch.fx keeps for itself. Rename it, or put the "
                "model into another as self.net."
            )


@torch.no_grad()
def _check_weights(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise CaptureError(
                f"The weight {name!r} is uninitialized: the model is lazy and has seen no input. Call it once on an "
                "example, and load its trained weights."
            )
        if tensor.is_meta:
            raise CaptureError(f"The weight {name!r} is on the meta device: it has no values. Load the weights first.")
        if tensor.is_inference() and tensor.requires_grad and not torch.is_inference_mode_enabled():
            raise CaptureError(
                f"The weight {name!r} was made under torch.inference_mode(), and torch.export does not take it "
                "outside. Build the model outside too."
            )
        if tensor.layout is not torch.strided:
            raise CaptureError(f"The weight {name!r} is {tensor.layout}. Store it dense, {name}.to_dense().")
        if not tensor.is_floating_point():
            continue
        if tensor.itemsize == 1:
            raise CaptureError(f"The weight {name!r} is {tensor.dtype}. Convert the model, model.float().")
        if not network.is_sound(tensor):
            raise CaptureError(
                f"The weight {name!r} holds NaN or infinity: the model is not a trained network. "
                "Load sound weights before converting."
            )


@contextlib.contextmanager
def _exportable() -> Iterator[None]:
    """Within: cuDNN's precisions are what torch.export can read. It computes nothing, but asks for them in an old way
    that refuses anything else, as ``torch.backends.cudnn.conv.fp32_precision = "ieee"``."""
    cudnn: Any = torch.backends.cudnn  # it makes its attributes as they are asked for
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


def _export(model: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    # torch.export specializes a batch of 1, and takes one tensor given twice for one input: a batch of 2 keeps it free.
    examples = tuple(torch.cat([x, x])[:2] if x.shape[0] == 1 else x.clone() for x in examples)
    try:
        with evaluating(model), quiet(), torch.no_grad(), _exportable():
            # Laid out as torch.export does: what *args takes lies together.
            named = inspect.signature(model.forward).bind(*examples).arguments
            dynamic = tree_map(lambda _: {0: Dim.DYNAMIC}, tuple(named.values()))
            with FreeBatch():
                program = export(model, examples, dynamic_shapes=dynamic)
            return program.run_decompositions({**RECURRENT, **_SPELLED, **_SQUEEZES})
    except Exception as error:
        reason = _reason(error)
        if isinstance(error, FixedBatchError) or "specialized it to be a constant" in str(error):
            reason = str(error) if isinstance(error, FixedBatchError) else "the code fixes the batch size"
            mend = (
                "Take it from x.shape[0], or write -1, not len(x) or a number. Where an operation fixes it by itself, "
                "write it with others, such as expand, gather and products."
            )
        elif "which is not a known type" in str(error):
            reason = str(error).partition(",")[0]
            mend = "Return tensors, in tuples, lists or dictionaries; or call torch.export.register_dataclass(...)."
            if "Cache'" in reason:
                mend += " Models of transformers return no cache after model.config.use_cache = False."
        else:
            mend = (
                "Control flow that depends on the values of tensors, .item(), and code outside torch cannot be "
                "captured. Rewrite that part with tensor operations, and check that the model runs with batch sizes 2 "
                "and 3."
            )
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}{_place(model, error)}: {reason}\n{mend}"
        ) from error


def _refuse_branches(program: ExportedProgram, model: nn.Module, ann: fx.GraphModule) -> None:
    """Raise CaptureError where some sizes of the batch go another way, by torch.export's guards, max and min.

    What torch itself chooses by the size may be the same in another way (cdist): there the answers decide. That it
    holds for batches of two and more is what torch.export takes for granted, and no guard.
    """
    names = set(program.graph_signature.user_inputs)
    inputs: list[Any] = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    sizes: list[Any] = [x.shape[0] for x in inputs]
    free = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    symbols = {symbol for size in free for symbol in size.expr.free_symbols}
    for guard in free[0].shape_env.guards if free else ():
        if not guard.expr.free_symbols <= symbols:
            continue
        for size in _BATCHES:
            if guard.expr.subs(dict.fromkeys(symbols, size)) == False:  # noqa: E712  (SymPy's, or an inequality)
                at = guard.sloc.framework_loc
                if str(getattr(at, "filename", "")).startswith(_TORCH):
                    _check_answers_of(size, model, ann)
                    break
                place = f", at {Path(at.filename).name}:{at.lineno} `{at.line}`" if hasattr(at, "filename") else ""
                raise _chooses_by_size(place, size)
    for node in program.graph.nodes:
        expression = getattr(getattr(node.meta.get("val"), "node", None), "expr", None)
        if not isinstance(expression, Max | Min) or not expression.free_symbols <= symbols:
            continue
        taken = set(expression.args)
        for size in _BATCHES:
            at_size = dict.fromkeys(symbols, size)
            taken &= {part for part in expression.args if part.subs(at_size) == expression.subs(at_size)}
            if not taken:
                raise _chooses_by_size(f", at {_author_name(node) or node.name!r} ({network.op_name(node)})", size)


def _chooses_by_size(place: str, size: int) -> CaptureError:
    return CaptureError(
        f"The model chooses by the size of the batch{place}: what it does with the example is not what it does with a "
        f"batch of {size}. A network to be converted answers each sample by itself: go by the size of images or "
        "channels, x.size(1), not of the batch, x.size(0)."
    )


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {next((line for line in str(error).splitlines() if line.strip()), '')}"


def _place(model: nn.Module, error: BaseException) -> str:
    """Where in the model an error arose: the innermost module that was running, and its line; or nothing."""
    names = {id(module): name for name, module in model.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        name = names.get(id(frame.f_locals.get(code.co_varnames[0]))) if code.co_argcount else None
        machinery = code.co_filename.startswith(_MACHINERY) or code.co_name in ("_call_impl", "_wrapped_call_impl")
        if name is not None and not machinery:
            text = linecache.getline(code.co_filename, line).strip()
            place = f", at {name or type(model).__name__!r}, {Path(code.co_filename).name}:{line} `{text}`"
    return place


def _own(exported: fx.GraphModule) -> fx.GraphModule:
    """A plain GraphModule with copies of the tensors: shared weights stay shared, the user's stay untouched."""
    owned = fx.GraphModule(nn.Module(), fx.Graph())
    copies: dict[int, Tensor] = {}
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    names = rewrite.plain_names(node.target for node in exported.graph.nodes if node.op == "get_attr")
    for node in exported.graph.nodes:
        if node.op == "call_module":  # guards of torch.export
            continue
        if node.op == "get_attr":
            tensor = network.get_tensor(exported, node.target)
            if not isinstance(tensor, Tensor):
                user = next(iter(node.users))
                raise CaptureError(
                    f"{_author_name(user) or user.name!r} ({user.target}) chooses between graphs as it runs; a network "
                    "to be converted is one graph. Compute both branches and choose by torch.where."
                )
            own = copies.get(id(tensor))
            if own is None:
                own = tensor.detach().clone(memory_format=torch.contiguous_format)
                if isinstance(tensor, nn.Parameter):
                    own = nn.Parameter(own, tensor.requires_grad)
                copies[id(tensor)] = own
            rewrite.put_tensor(owned, names[node.target], own)
        if node.op == "output":
            flat = [a for a in tree_leaves(node.args[0]) if isinstance(a, fx.Node)]
            for a in flat:
                if isinstance(a.meta.get("val"), py_sym_types):
                    raise CaptureError(
                        f"The model returns a number ({network.op_name(a)}) beside its tensors, which depends on its "
                        "input. Return tensors alone."
                    )
            outputs = tuple(values[a] for a in flat)
            values[node] = graph.output(outputs[0] if len(outputs) == 1 else outputs)
            continue
        new = graph.node_copy(node, lambda n: values[n])
        new.meta = {"origin": _author_name(node), "dtype": getattr(node.meta.get("val"), "dtype", None)}
        if node.op == "get_attr":
            new.target = names[node.target]
        values[node] = new
    owned.graph = graph
    return owned


def _mark_cumulative(gm: fx.GraphModule, model: nn.Module) -> None:
    """Mark what a BatchNorm of momentum None made: its average over all batches reads as a momentum of 0 in a graph."""
    norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.momentum is None}
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.meta["origin"] in norms:
            node.meta["cumulative"] = True


def _author_name(node: fx.Node) -> str:
    """The dotted name of the innermost module whose forward made this node; ``name@1`` (second call) loses its mark."""
    stack = node.meta.get("nn_module_stack") or {}
    name = [path for path, _ in stack.values()][-1] if stack else ""
    return name.split("@")[0]


def _normalise(gm: fx.GraphModule) -> None:
    """Remove what does nothing, and free reshapes of the batch size where -1 says the same."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDENTITIES and any(user.target in _BY_STRIDE for user in node.users):
            node.target, node.args, node.kwargs = _aten.clone.default, node.args[:1], _CONTIGUOUS
        elif node.target in _IDENTITIES or (node.target in _DROPOUTS and not node.args[2]):
            rewrite.replace(node, node.args[0])
        elif node.target in _MAKERS and all(isinstance(size, int) for size in node.args[1]):
            # Its operand lends its type alone.
            maker, arguments = _MAKERS[node.target], node.args[1:]
            node.target, node.args, node.kwargs = maker, arguments, {"dtype": node.meta.get("dtype")}
        elif node.target in _BY_POSITION and len(node.args) > 2:
            node.args, node.kwargs = node.args[:2], {"alpha": node.args[2]}  # where other sums have it
        elif node.target is _aten.rrelu.default and not (len(node.args) > 3 and node.args[3]):
            _as_leaky_relu(node)  # what it is at inference
        elif node.target is _aten.slice.Tensor and _is_whole_slice(node):
            rewrite.replace(node, node.args[0])
        elif node.target in _EXTREMES and all(user.args[1] == 0 for user in node.users if user.users):
            x, dim, keep = [*node.args, *node.kwargs.values(), False][:3]
            node.target, node.args, node.kwargs = _EXTREMES[node.target], (x, [dim], keep), {}
            for values in list(node.users):
                if values.args[1] == 0:
                    node.meta["dtype"] = values.meta["dtype"]
                rewrite.replace(values, node)
        elif node.target is _aten.embedding_bag.padding_idx:
            _spell_bag(gm, node)
        elif node.target in _VIEWS:
            node.target = _aten.reshape.default
            sizes = list(node.args[1])
            symbolic = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
            if len(symbolic) == 1 and -1 not in sizes:
                sizes[symbolic[0]] = -1
                node.args = (node.args[0], sizes)
    rewrite.tidy(gm)


def _spell_bag(gm: fx.GraphModule, node: fx.Node) -> None:
    """``embedding_bag`` of ``[B, L]`` places, a bag for each sample, as the sum, mean or maximum of embeddings."""
    weight, places, offsets, _, mode, _, factors, last, padding = [*node.args, False, None][:9]
    rows: list[Any] = [n for n in (places, factors) if n is not None]
    regular = isinstance(offsets, fx.Node) and offsets.target is _aten.arange.start_step and len(offsets.args) > 2
    flat = all(n.target in _VIEWS and list(n.args[1]) == [-1] for n in rows)
    if last or padding not in (None, -1) or not regular or not flat:
        return
    length = offsets.args[2]  # type: ignore[union-attr]
    with gm.graph.inserting_before(node):
        by_sample = [rewrite.call(gm, _aten.reshape.default, (n.args[0], [-1, length]), like=node) for n in rows]
        found = rewrite.call(gm, _aten.embedding.default, (weight, by_sample[0]), like=node)
        if factors is not None:
            column = rewrite.call(gm, _aten.unsqueeze.default, (by_sample[1], -1), like=node)
            found = rewrite.call(gm, _aten.mul.Tensor, (found, column), like=node)
        how: Any = (_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default)[mode]  # type: ignore[index]
        bag = rewrite.call(gm, how, (found, [1]), like=node)
    for first in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
        rewrite.replace(first, bag)


def _as_leaky_relu(node: fx.Node) -> None:
    """``rrelu`` with the mean of its slopes."""
    x, low, high = [*node.args, *(0.125, 1 / 3)[len(node.args) - 1 :]][:3]
    node.target, node.args, node.kwargs = _aten.leaky_relu.default, (x, (low + high) / 2), {}  # type: ignore[operator]


def _is_whole_slice(node: fx.Node) -> bool:
    args = [*node.args[1:], *[0, None, None, 1][len(node.args) - 1 :]]
    start, end, step = args[1], args[2], args[3] if len(args) > 3 else 1
    return start in (0, None) and step == 1 and (end is None or (isinstance(end, int) and end >= 2**62))
