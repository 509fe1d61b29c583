"""The tensors of a bundle: which share memory, how they lie in it, and the modules they hang in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import BundleError
from spikezip.export.leaves import read_leaf
from spikezip.export.packing import pack, unpack
from spikezip.export.values import fields
from spikezip.export.vocabulary import DTYPES
from spikezip.graph import network

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,63}")
_LONGEST_PATH = 1024
_KINDS = {"parameter", "buffer"}


def check_path(name: str, what: str) -> str:
    """``name`` if it is a dotted name of identifiers and numbers; else BundleError."""
    if len(name) > _LONGEST_PATH or not _PATH.fullmatch(name):
        raise BundleError(f"{what} has the name {name[:80]!r}, which is no dotted name")
    return name


def stored_tensors(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Every parameter and buffer that the graph reads, directly or inside a called module, under each of its names.

    In order of execution. BundleError for one that nothing reads.
    """
    found: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            found[str(node.target)] = network.get_tensor(gm, node.target)
        elif node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                found[f"{node.target}.{name}"] = tensor
    held = [*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)]
    idle = sorted({name for name, _ in held} ^ found.keys())
    if idle:
        raise BundleError(f"the tensor {idle[0]!r} is read by no node, or is no parameter or buffer")
    return found


def write_tensors(stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what is to be known of each tensor, the tensors to be stored): a tensor of two names is stored once."""
    facts: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}
    first: dict[tuple, str] = {}
    for name, tensor in sorted(stored.items()):
        if tensor.dtype not in DTYPES.values() or tensor.layout is not torch.strided:
            raise BundleError(f"the tensor {name!r} is {tensor.dtype} ({tensor.layout}), which a bundle cannot hold")
        facts[name] = {
            "kind": "parameter" if isinstance(tensor, nn.Parameter) else "buffer",
            "requires_grad": tensor.requires_grad,
        }
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))
        if tensor.numel() and place in first:
            facts[name]["same_as"] = first[place]
            continue
        first[place] = name
        order = _order(tensor)
        if order:  # the layout decides which kernel runs, and so the last bits
            facts[name]["order"] = order
        dense = tensor.detach().cpu().resolve_conj().clone(memory_format=torch.contiguous_format)
        if dense.is_complex():
            facts[name]["complex"] = True
            dense = torch.view_as_real(dense)
        elif packed := pack(dense):
            facts[name]["packed"], dense = packed
        kept[name] = dense
    return facts, kept


def _order(tensor: Tensor) -> list[int]:
    """The dimensions from slowest to fastest in memory; empty for the usual order."""
    if tensor.is_contiguous():
        return []
    order = sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))
    dense = torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype, device="meta").stride() == tensor.stride()
    return order if dense else []


def check_facts(facts: Any, present: set[str]) -> dict[str, Any]:
    """``facts`` if they tell of exactly the tensors that are present; else BundleError."""
    if not isinstance(facts, dict):
        raise BundleError("what it tells of its tensors is not an object")
    for name, row in facts.items():
        check_path(name, "a tensor")
        fields(
            row,
            f"the tensor {name!r}",
            {"kind": str, "requires_grad": bool},
            {"same_as": str, "order": list, "complex": bool, "packed": dict},
        )
        if row["kind"] not in _KINDS:
            raise BundleError(f"the tensor {name!r} is a {row['kind'][:40]!r}, neither parameter nor buffer")
    stored = {name for name, row in facts.items() if "same_as" not in row}
    for name, row in facts.items():
        if "same_as" in row and row["same_as"] not in stored:
            raise BundleError(f"the tensor {name!r} is the same as {row['same_as'][:80]!r}, which is not stored")
    if stored != present:
        name = sorted(stored ^ present)[0]
        raise BundleError(f"the tensor {name[:80]!r} is {'missing' if name in stored else 'one too many'}")
    return facts


def read_tensors(facts: Mapping[str, Any], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Each tensor by name, as parameter or buffer, shared where it was; ``get`` reads a stored one."""
    raw: dict[str, Tensor] = {}
    made: dict[tuple[str, str], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, row in sorted(facts.items()):
        origin = row.get("same_as", name)
        if origin not in raw:
            raw[origin] = _laid_out(_stored(get(origin), facts[origin], origin), facts[origin].get("order"), origin)
        tensor = raw[origin]
        if row["requires_grad"] and not (row["kind"] == "parameter" and _trainable(tensor)):
            raise BundleError(f"the tensor {name!r} cannot be trained, and yet asks for gradients")
        key = (origin, row["kind"])
        if key not in made:
            parameter = row["kind"] == "parameter"
            made[key] = nn.Parameter(tensor, requires_grad=row["requires_grad"]) if parameter else tensor
        found[name] = made[key]
    return found


def _trainable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _stored(tensor: Tensor, row: Mapping[str, Any], name: str) -> Tensor:
    if "packed" in row:
        tensor = unpack(row["packed"], tensor, name)
    return _complex(tensor, name) if row.get("complex") else tensor


def _complex(pairs: Tensor, name: str) -> Tensor:
    """Complex numbers from pairs of real and imaginary parts."""
    if pairs.dtype not in (torch.float32, torch.float64) or pairs.shape[-1:] != (2,):
        raise BundleError(f"the tensor {name!r} does not hold pairs of real and imaginary parts")
    return torch.view_as_complex(pairs.clone())  # in the file they may lie where torch cannot read them together


def _laid_out(tensor: Tensor, order: Any, name: str) -> Tensor:
    if order is None:
        return tensor.clone()  # apart from the file, which may change
    if any(type(i) is not int for i in order) or sorted(order) != list(range(tensor.dim())):
        raise BundleError(f"the order of the dimensions of {name!r} is no permutation")
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype).copy_(tensor)


def hang(tensors: Mapping[str, Tensor], rows: Any) -> tuple[fx.GraphModule, dict[str, nn.Module]]:
    """A GraphModule without nodes yet, that holds the tensors and the modules; and these modules by name."""
    gm = fx.GraphModule(nn.Module(), fx.Graph())
    if not isinstance(rows, dict):
        raise BundleError("its modules are not an object")
    modules: dict[str, nn.Module] = {}
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parent, _, own = name.rpartition(".")
        children.setdefault(parent, {})[own] = tensor
    for name, row in rows.items():
        check_path(name, "a module")
        own = children.get(name, {})
        modules[name] = read_leaf(row, name, own)
        holder, leaf = _holder(gm, name)
        holder.add_module(leaf, modules[name])
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] in modules:
            continue
        holder, leaf = _holder(gm, name)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)
    return gm, modules


def _holder(gm: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module in which ``name`` is to hang, made if need be, and the last part of the name, which must be free."""
    *path, leaf = name.split(".")
    module = gm
    for part in path:
        child = module._modules.get(part)
        if child is None:
            if hasattr(module, part):
                raise BundleError(f"the name {name!r} is taken, or reserved")
            child = nn.Module()
            module.add_module(part, child)
        elif type(child) is not nn.Module:
            raise BundleError(f"the name {name!r} lies inside another module")
        module = child
    if hasattr(module, leaf):
        raise BundleError(f"the name {name!r} is taken, or reserved")
    return module, leaf
