"""Ways to forge the header of a bundle: each row names a mutation, makes it, and says what the message must tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from bundle_nets import Parts

Mutation = tuple[str, Callable[[Parts], Any], str]


def _set(path: str, value: Any) -> Callable[[Parts], None]:
    """Set what lies under ``a/b/0`` in the document."""

    def mutate(parts: Parts) -> None:
        *way, last = path.split("/")
        place = parts.document
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value

    return mutate


def _drop(path: str) -> Callable[[Parts], None]:
    def mutate(parts: Parts) -> None:
        *way, last = path.split("/")
        place = parts.document
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place.pop(int(last) if isinstance(place, list) else last)

    return mutate


def _conv(**change: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.node("aten.conv2d.default").update(change)


def _conv_arg(index: int, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.node("aten.conv2d.default")["args"].__setitem__(index, value)


def node(target: str, *args: Any, **kwargs: Any) -> Callable[[Parts], None]:
    """A node more, in front of the output, whose value nobody reads."""

    def mutate(parts: Parts) -> None:
        row = {"op": "call_function", "name": "evil", "target": target, "args": list(args), "kwargs": kwargs}
        parts.document["nodes"].insert(-1, {**row, "origin": ""})

    return mutate


def _neuron(parts: Parts) -> tuple[str, Any]:
    return next((n, m) for n, m in parts.document["modules"].items() if m["kind"] == "STBIF")


def _level(**change: Any) -> Callable[[Parts], None]:
    return lambda parts: _neuron(parts)[1].update(change)


def _complex_neuron(parts: Parts) -> None:
    """Complex numbers into the first neuron, and the real part of what it gives."""
    rows = parts.document["nodes"]
    index = next(i for i, row in enumerate(rows) if row["op"] == "call_module" and row["target"] == _neuron(parts)[0])
    neuron = rows[index]["name"]
    for row in rows[index + 1 :]:
        row["args"] = [{"node": "after"} if value == {"node": neuron} else value for value in row["args"]]
    to_complex = {
        "target": "aten._to_copy.default",
        "args": rows[index]["args"],
        "kwargs": {"dtype": {"dtype": "complex64"}},
    }
    to_real = {"target": "aten.real.default", "args": [{"node": neuron}], "kwargs": {}}
    rows[index]["args"] = [{"node": "before"}]
    rows.insert(index + 1, {"op": "call_function", "name": "after", "origin": "", **to_real})
    rows.insert(index, {"op": "call_function", "name": "before", "origin": "", **to_complex})


def _tensor(change: Callable[[torch.Tensor], torch.Tensor], ends: str = "fc.weight") -> Callable[[Parts], None]:
    def mutate(parts: Parts) -> None:
        name = next(n for n in parts.tensors if n.endswith(ends))
        parts.tensors[name] = change(parts.tensors[name])

    return mutate


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def _rename(old: str, new: str) -> Callable[[Parts], None]:
    """A tensor under another name, everywhere."""

    def mutate(parts: Parts) -> None:
        parts.tensors[new] = parts.tensors.pop(old)
        parts.document["tensors"][new] = parts.document["tensors"].pop(old)
        for row in parts.document["nodes"]:
            if row["target"] == old:
                row["target"] = new

    return mutate


def _rename_node(new: str) -> Callable[[Parts], None]:
    def mutate(parts: Parts) -> None:
        old = parts.node("aten.conv2d.default")["name"]
        text = json.dumps(parts.document["nodes"]).replace(json.dumps(old), json.dumps(new))
        parts.document["nodes"] = json.loads(text)

    return mutate


def _deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _doubling(parts: Parts) -> None:
    """Sizes that are squared again and again: after 60 nodes, a number of 2**60 bits."""
    x = next(r["name"] for r in parts.document["nodes"] if r["op"] == "placeholder")
    rows = [{"op": "call_function", "name": "s0", "target": "aten.sym_size.int", "args": [{"node": x}, 3]}]
    rows += [
        {"op": "call_function", "name": f"s{i + 1}", "target": "operator.mul", "args": [{"node": f"s{i}"}] * 2}
        for i in range(60)
    ]
    parts.document["nodes"][-1:-1] = [{**row, "kwargs": {}, "origin": ""} for row in rows]


def _long_list(parts: Parts) -> None:
    """A list times a large number."""
    node("aten.split.Tensor", {"node": _first_input(parts)}, 1, 1)(parts)
    row = {"op": "call_function", "name": "evil2", "target": "operator.mul", "args": [{"node": "evil"}, 10**12]}
    parts.document["nodes"].insert(-1, {**row, "kwargs": {}, "origin": ""})


def _large_for_one(parts: Parts) -> None:
    """A constant of ``10**15 * (1 - batch // 2)`` values: large for one image, none for two or three."""
    x = {"node": _first_input(parts)}
    steps = [("b", "aten.sym_size.int", [x, 0]), ("h", "operator.floordiv", [{"node": "b"}, 2])]
    steps += [("m", "operator.mul", [{"node": "h"}, -(10**15)]), ("n", "operator.add", [{"node": "m"}, 10**15])]
    steps += [("z", "aten.zeros.default", [[{"node": "n"}]])]
    parts.document["nodes"][-1:-1] = [
        {"op": "call_function", "name": name, "target": target, "args": args, "kwargs": {}, "origin": ""}
        for name, target, args in steps
    ]


def _many_parts(parts: Parts) -> None:
    """A tensor of 2**25 zeros, which need no memory while they are only a shape, cut into one tensor each."""
    node("aten.zeros.default", [1 << 25])(parts)
    row = {"op": "call_function", "name": "evil2", "target": "aten.unbind.int", "args": [{"node": "evil"}]}
    parts.document["nodes"].insert(-1, {**row, "kwargs": {}, "origin": ""})


def _first_input(parts: Parts) -> str:
    return next(r["name"] for r in parts.document["nodes"] if r["op"] == "placeholder")


def _self_reference(parts: Parts) -> None:
    row = parts.node("aten.conv2d.default")
    row["args"][0] = {"node": row["name"]}


def _later_reference(parts: Parts) -> None:
    rows = parts.document["nodes"]
    parts.node("aten.conv2d.default")["args"][0] = {"node": rows[-2]["name"]}


def _duplicate_node(parts: Parts) -> None:
    rows = parts.document["nodes"]
    rows.insert(-1, {**rows[-2]})


def _moved_output(parts: Parts) -> None:
    rows = parts.document["nodes"]
    rows.insert(0, rows.pop())


def _second_output(parts: Parts) -> None:
    rows = parts.document["nodes"]
    rows.append({**rows[-1], "name": "output_1"})


def _constant_output(parts: Parts) -> None:
    node("aten.ones.default", [2])(parts)
    parts.document["nodes"][-1]["args"] = [{"node": "evil"}]


def _integer_output(parts: Parts) -> None:
    node("aten.sym_size.int", {"node": _first_input(parts)}, 0)(parts)
    parts.document["nodes"][-1]["args"] = [{"node": "evil"}]


def _called_twice(parts: Parts) -> None:
    row = next(r for r in parts.document["nodes"] if r["op"] == "call_module")
    parts.document["nodes"].insert(-1, {**row, "name": "again"})


def _extra_module(parts: Parts) -> None:
    parts.document["modules"]["grid"] = {"kind": "InputGrid", "exponent": 3, "limit": 8}


def _on_integers(parts: Parts) -> None:
    _extra_module(parts)
    row = {"op": "call_module", "name": "g", "target": "grid", "args": [{"node": "turn"}], "kwargs": {}, "origin": ""}
    parts.document["nodes"].insert(-1, row)


def _extra_input(parts: Parts) -> None:
    row = {"op": "placeholder", "name": "y", "target": "y); import os; (x", "args": [], "kwargs": {}, "origin": ""}
    parts.document["nodes"].insert(0, row)


def _initial_codes(codes: torch.Tensor) -> Callable[[Parts], None]:
    def mutate(parts: Parts) -> None:
        name = f"{_neuron(parts)[0]}.initial_codes"
        parts.tensors[name] = codes
        _set(f"tensors/{name}", {"kind": "buffer", "requires_grad": False})(parts)

    return mutate


def _threshold(value: float) -> Callable[[Parts], None]:
    return _tensor(lambda t: torch.full_like(t, value), "threshold")


def _mixing(parts: Parts) -> None:
    """The batch in two dimensions at once."""
    x = {"node": _first_input(parts)}
    node("aten.tensordot.default", x, x, [1, 2, 3], [1, 2, 3])(parts)


_BOOM = 10**6

HEADER: list[Mutation] = [
    # the document as a whole
    ("format of the future", _set("format", "spikezip.bundle/3"), "upgrade"),
    ("format of the far future", _set("format", "spikezip.bundle/999999999"), "upgrade"),
    ("format of version 0", _set("format", "spikezip.bundle/0"), "reads versions 1 to 2"),
    ("format of something else", _set("format", "onnx"), "not a bundle of spikezip"),
    ("format is a number", _set("format", 1), "not a bundle of spikezip"),
    ("format endless", _set("format", "spikezip.bundle/" + "9" * 5000), "not a bundle of spikezip"),
    ("document is a list", lambda p: setattr(p, "document", [1, 2]), "not a bundle of spikezip"),
    ("document is null", lambda p: setattr(p, "document", None), "not a bundle of spikezip"),
    ("key too many", _set("pickle", "gASV"), "'pickle', which does not belong"),
    ("key missing", _drop("encoding"), "lacks 'encoding'"),
    ("nodes are an object", _set("nodes", {}), "'nodes' is of the wrong type"),
    ("training is a number", _set("training", 1), "'training' is of the wrong type"),
    ("document deep", _set("notes", [["deep", _deep(200)]]), "nested too deeply"),
    # stage, inputs, encodings, notes
    ("stage unknown", _set("stage", "GAN"), "its stage is 'GAN'"),
    ("stage other", _set("stage", "QANN"), "but '.*' is a STBIF"),
    ("stage lower", _set("stage", "ANN"), "but '.*' is a STBIF"),
    ("input shape negative", _set("inputs/0/shape", [1, -4, 4]), "which no input has"),
    ("input shape huge", _set("inputs/0/shape", [_BOOM, _BOOM, _BOOM]), "too large"),
    ("input shape of 64 bits", _set("inputs/0/shape", [2**62]), "which no input has"),
    ("input shape of floats", _set("inputs/0/shape", [1.0, 4.0, 4.0]), "which no input has"),
    ("input shape of many dimensions", _set("inputs/0/shape", [1] * 1000), "which no input has"),
    ("input shape wrong", _set("inputs/0/shape", [2, 4, 4]), "cannot be computed"),
    ("input type unknown", _set("inputs/0/dtype", "float4"), "none of bfloat16"),
    ("input type wrong", _set("inputs/0/dtype", "int64"), "cannot be computed"),
    ("neuron on complex numbers", _complex_neuron, "receive complex numbers"),
    ("inputs none", _set("inputs", []), "0 inputs, but its graph has 1"),
    ("inputs many", lambda p: p.document["inputs"].extend(p.document["inputs"] * 9), "10 inputs, but"),
    ("input is a number", _set("inputs/0", 3), "input 0 is not an object"),
    ("encoding unknown", _set("encoding", "poisson"), "its encoding is 'poisson'"),
    ("encoding missing", _set("encoding", None), "its encoding is 'None'"),
    ("encoding that never completes", _set("bias_encoding", "shares:1/3"), "which never completes"),
    ("encoding without length", _set("bias_encoding", "even:0"), "its encoding is 'even:0'"),
    ("encoding endless", _set("encoding", "even:" + "9" * 6000), "its encoding is 'even:999"),
    ("encoding in strange digits", _set("encoding", "even:²"), "its encoding"),
    ("notes not pairs", _set("notes", [["a", 1, 2]]), "not pairs"),
    ("note of an unknown kind", _set("notes", [["a", {"pickle": "gASV"}]]), "'pickle' are not known"),
    ("note that is a half character", _set("notes", [["a", "\ud800"]]), "not Unicode"),
    ("note that refers to a node", _set("notes", [["a", {"node": "turn"}]]), "does not exist"),
    ("note of an unknown record", _set("notes", [["a", {"record": {"kind": "Popen"}}]]), "'Popen' are not known"),
    (
        "note with a wrong record",
        _set("notes", [["a", {"record": {"kind": "Levels", "lowest": "x", "highest": 1}}]]),
        "wrong type",
    ),
    (
        "note with levels that exclude 0",
        _set("notes", [["a", {"record": {"kind": "Levels", "lowest": 2, "highest": 3}}]]),
        "admissible",
    ),
    # modules
    ("levels exclude 0 from below", _level(highest=-1), "highest -1"),
    ("levels exclude 0 from above", _level(lowest=1), "lowest 1"),
    ("levels empty", _level(lowest=0, highest=0), "nothing is left"),
    ("levels huge", _level(highest=2**60), "it must lie in"),
    ("levels are floats", _level(highest=3.0), "wrong type"),
    ("levels are true", _level(highest=True), "wrong type"),
    ("levels are text", _level(highest="3"), "wrong type"),
    ("slew 0", _level(slew=0), "slew 0"),
    ("initial code below all codes", _level(initial=-1), "start at -1, which is none"),
    ("initial code above all codes", _level(initial=1 << 20), "start at 1048576, which is none"),
    ("initial codes that are none", _initial_codes(torch.full((4,), 99, dtype=torch.int8)), "99, not codes of"),
    ("initial codes of another shape", _initial_codes(torch.ones(2, 2, dtype=torch.int8)), "the shape of its tracers"),
    ("initial codes that are fractions", _initial_codes(torch.full((4,), 0.5)), "holds no codes"),
    ("initial codes of nobody", _initial_codes(torch.ones(0, dtype=torch.int8)), "holds no codes"),
    ("initial code is true", _level(initial=True), "wrong type"),
    ("slew negative", _level(slew=-1), "slew -1"),
    ("module of an unknown kind", _level(kind="Sequential"), "'Sequential', which is not known"),
    ("module of another kind", _level(kind="InputGrid"), "which does not belong|lacks"),
    ("module with a fact too many", _level(code="import os"), "which does not belong"),
    ("module that nothing uses", _extra_module, "nothing in its graph uses 'grid'"),
    ("module called twice", _called_twice, "called twice"),
    ("module on integers", _on_integers, "receives no floating-point"),
    ("grid out of range", lambda p: (_extra_module(p), _set("modules/grid/exponent", 10**9)(p)), "exponent 1000000000"),
    ("threshold 0", _threshold(0.0), r"is 0\.0; a threshold must be positive"),
    ("threshold negative", _threshold(-1.0), "a threshold must be positive"),
    ("threshold NaN", _threshold(float("nan")), "a threshold must be positive"),
    ("threshold infinite", _threshold(float("inf")), "a threshold must be positive"),
    ("threshold of several", _tensor(lambda t: t.expand(3).clone(), "threshold"), r"needs .* of shape \(\)"),
    ("threshold of integers", _tensor(lambda t: t.long() + 1, "threshold"), "needs torch.float32"),
    # tensors
    ("tensor missing", lambda p: p.tensors.pop("fc.weight"), "'fc.weight' is missing"),
    ("tensor too many", lambda p: p.tensors.update(extra=torch.zeros(2)), "'extra' is one too many"),
    (
        "tensor that nothing uses",
        lambda p: (p.tensors.update(z=torch.ones(2)), _set("tensors/z", {"kind": "buffer", "requires_grad": False})(p)),
        "nothing in its graph uses 'z'",
    ),
    ("tensor of NaN", _tensor(_filled(float("nan"))), "'fc.weight' holds NaN"),
    ("tensor of infinity", _tensor(_filled(float("inf"))), "'fc.weight' holds NaN or infinity"),
    ("tensor of -infinity", _tensor(_filled(float("-inf"))), "'fc.weight' holds NaN or infinity"),
    (
        "weight that passes for a mask",
        lambda p: (_tensor(_filled(float("-inf")))(p), _set("tensors/fc.weight/kind", "buffer")(p)),
        "'fc.weight' holds NaN or infinity",
    ),
    ("tensor changed", _tensor(lambda t: t + 1), "do not have the SHA-256"),
    ("tensor of another shape", _tensor(lambda t: t[:, :3].clone()), "cannot be computed"),
    ("tensor transposed", _tensor(lambda t: t.t().contiguous()), "cannot be computed"),
    ("tensor of another type", _tensor(lambda t: t.double()), "cannot be computed|SHA-256"),
    ("tensor empty", _tensor(lambda t: t[:0].clone()), "cannot be computed|SHA-256|holds"),
    ("tensor of complex numbers", _tensor(lambda t: t.to(torch.complex64)), "of a type that networks do not have"),
    ("tensor called complex", _set("tensors/fc.weight/complex", True), "does not hold pairs of real and imaginary"),
    (
        "tensor of pairs called complex",
        lambda p: (_tensor(lambda t: t[:, :2].clone())(p), _set("tensors/fc.weight/complex", True)(p)),
        "cannot be computed",
    ),
    ("tensor complex by a word", _set("tensors/fc.weight/complex", "yes"), "of the wrong type"),
    ("tensor of 8-bit floats", _tensor(lambda t: t.to(torch.float8_e4m3fn)), "of a type that networks do not have"),
    ("tensor kind unknown", _set("tensors/fc.weight/kind", "pickle"), "neither parameter nor buffer"),
    ("tensor facts of wrong type", _set("tensors/fc.weight", 5), "is not an object"),
    ("tensor same as nothing", _set("tensors/fc.weight/same_as", "nothing"), "which is not stored"),
    ("tensor same as itself", _set("tensors/fc.weight/same_as", "fc.weight"), "which is not stored"),
    ("tensor order no permutation", _set("tensors/fc.weight/order", [0, 0]), "no permutation"),
    ("tensor order of texts", _set("tensors/fc.weight/order", ["0", "1"]), "no permutation"),
    ("tensor order too long", _set("tensors/fc.weight/order", list(range(10**5))), "no permutation"),
    ("integers that ask for gradients", _set("tensors/turn/requires_grad", True), "cannot be trained"),
    ("neuron's buffer as parameter", lambda p: _set(f"tensors/{_neuron(p)[0]}.threshold/kind", "parameter")(p),
     "a parameter where a buffer belongs"),
    # names
    ("path traversal", _rename("turn", "../../etc/passwd"), "no dotted name"),
    ("absolute path", _rename("turn", "/etc/passwd"), "no dotted name"),
    ("name with empty parts", _rename("turn", "a..b"), "no dotted name"),
    ("name that is code", _rename("turn", 'x"); import os; ("'), "no dotted name"),
    ("name with a line break", _rename("turn", "a\nb"), "no dotted name"),
    ("name of a method", _rename("turn", "forward"), "taken, or reserved"),
    ("name of the graph", _rename("turn", "graph"), "taken, or reserved"),
    ("name of a table of torch", _rename("turn", "_parameters"), "taken, or reserved"),
    ("name of a class", _rename("turn", "__class__.__init__"), "taken, or reserved"),
    ("name inside a tensor", _rename("turn", "fc.weight.data"), "taken, or reserved"),
    ("name that is endless", _rename("turn", "a" * 5000), "no dotted name"),
    ("name that is deep", _rename("turn", ".".join("a" * 500)), "no dotted name"),
    ("module inside a tensor", lambda p: p.document["modules"].update({"fc.weight": {"kind": "InputGrid", "exponent": 1,
     "limit": 1}}), "taken, or reserved"),
    # nodes
    ("graph empty", _set("nodes", []), "not a list of 2"),
    ("graph absurdly large", lambda p: _set("nodes", p.document["nodes"][:1] * 60_000)(p), "not a list of 2 to"),
    ("node is a number", _set("nodes/0", 7), "node 0 is not an object"),
    ("node without target", _drop("nodes/0/target"), "lacks 'target'"),
    ("node of an unknown op", _conv(op="exec"), "'exec', which is no kind of node"),
    ("node that calls a method", _conv(op="call_method", target="__reduce__"), "no kind of node"),
    ("node name that is code", _rename_node("x = __import__('os')"), "no identifier"),
    ("node name that is a keyword", _rename_node("lambda"), "no identifier"),
    ("node name that torch.fx reserves", _rename_node("torch"), "a graph cannot hold"),
    ("node names equal", _duplicate_node, "exists twice"),
    ("node that reads itself", _self_reference, "used before it is computed"),
    ("node that reads a later one", _later_reference, "used before it is computed"),
    ("node that reads nothing", _conv_arg(0, {"node": "nowhere"}), "does not exist"),
    ("node reference is a list", _conv_arg(0, {"node": []}), "does not exist"),
    ("argument deep", _conv_arg(3, _deep(100)), "nested too deeply"),
    ("argument of two keys", _conv_arg(3, {"node": "x", "tuple": []}), "an object of one key"),
    ("argument of an unknown kind", _conv_arg(3, {"code": "1"}), "'code' are not known"),
    ("argument of an unknown type", _conv_arg(3, {"dtype": "qint8"}), "none of"),
    ("argument on another device", _conv_arg(3, {"device": "cuda:9999"}), "none of cpu"),
    ("argument of another layout", _conv_arg(3, {"layout": "sparse_coo"}), "none of strided"),
    ("argument not a number", _conv_arg(3, {"float": "nan"}), "none of inf"),
    ("slice of two", _conv_arg(3, {"slice": [1, 2]}), "three values"),
    ("tuple of a number", _conv_arg(3, {"tuple": 5}), "not a list of values"),
    ("keyword that is code", _conv(kwargs={"a=1); import os; f(b": 1}), "no identifier"),
    ("keyword that the operation lacks", _conv(kwargs={"out": {"node": "turn"}}), "operands that such a node"),
    ("arguments too few", _conv(args=[]), "cannot be computed"),
    ("arguments too many", _conv(args=[1] * 50), "operands that such a node"),
    ("number for a type", node("aten.softmax.int", {"node": "index"}, 0, 2**63 - 1), "operands that such a node"),
    ("number for a layout", node("aten.ones.default", [2], layout=77), "operands that such a node"),
    ("number for a memory format", node("aten.clone.default", {"node": "turn"}, memory_format=9), "operands that such"),
    ("stride 0", _conv_arg(3, [0, 0]), "cannot be computed"),
    ("input whose name is code", _extra_input, "no identifier"),
    ("origin with a control character", _conv(origin="a\u001b[2J"), "no name"),
    ("neuron of an unknown kind", _conv(neuron="analog"), "not known"),
    ("get_attr of a tensor that is not there", lambda p: p.node("turn").update(target="conv1"), "which is not there"),
    ("get_attr of a method", lambda p: p.node("turn").update(target="forward.__globals__"), "which is not there"),
    ("get_attr inside a neuron", lambda p: p.node("turn").update(target=f"{_neuron(p)[0]}.threshold"), "not there"),
    ("call_module of what is no module", lambda p: _called_twice(p) or p.document["nodes"][-2].update(target="fc"),
     "which is not there"),
    ("call_module with two operands", lambda p: next(r for r in p.document["nodes"] if r["op"] == "call_module")[
        "args"].append(1), "operands that such a node"),
    ("output missing", _drop("nodes/-1"), "does not end in its one output"),
    ("output not last", _moved_output, "does not end in its one output"),
    ("output twice", _second_output, "does not end in its one output"),
    ("output of nothing", _set("nodes/-1/args", [[]]), "operands that such a node"),
    ("output of a number", _set("nodes/-1/args", [3]), "operands that such a node"),
    ("output that is constant", _constant_output, "does not depend on"),
    ("output that is a size", _integer_output, "does not depend on"),
    # operations
    ("operation that is Python", _conv(target="os.system"), "'os.system' is not one"),
    ("operation builtins.eval", _conv(target="builtins.eval"), "not one of those"),
    ("operation operator.pow", node("operator.pow", 10, 10**9), "not one of those"),
    ("operation operator.attrgetter", node("operator.attrgetter", "__class__"), "not one of those"),
    ("operation that walks attributes", node("aten.__class__.__init__"), "not one of those"),
    ("operation that walks further", node("aten.conv2d.default.__globals__"), "not one of those"),
    ("operation of another library", node("prim.device.default", 1), "not one of those"),
    ("operation that does not exist", node("aten.explode.default"), "not one of those"),
    ("overload that does not exist", node("aten.conv2d.evil"), "not one of those"),
    ("operation that reads a file", node("aten.from_file.default", "/etc/passwd", False, 100), "not one of those"),
    ("operation that writes a file", node("aten.save.default", 1, "/tmp/evil"), "not one of those"),
    ("operation that writes in place", node("aten.relu_.default", {"node": "turn"}), "not one of those"),
    ("operation that writes to out", node("aten.add.out", 1, 1), "not one of those"),
    ("operation that prints", node("aten._print.default", "evil"), "not one of those"),
    ("operation on raw memory", node("aten.as_strided.default", {"node": "turn"}, [99], [1]), "not one of those"),
    ("operation that leaves memory as it was", node("aten.empty.memory_format", [9]), "not one of those"),
    ("operation that packs pointers", node("aten.fbgemm_pack_gemm_matrix_fp16.default", {"node": "turn"}), "not one"),
    ("operation that draws numbers", node("aten.rand.default", [4]), "draws random numbers"),
    ("operation that draws like", node("aten.bernoulli.default", {"node": "turn"}), "not one of those"),
    ("operation whose shape is data", node("aten.nonzero.default", {"node": "turn"}), "cannot be computed|depends on"),
    ("operation that reads a value", node("aten._local_scalar_dense.default", {"node": "turn"}), "not one of those"),
    # sizes
    ("constant of 10**12 values", node("aten.full.default", [_BOOM, _BOOM], 1.0), "too large"),
    ("constant past 64 bits", node("aten.zeros.default", [2**62, 2**62]), "cannot be computed"),
    ("constant of negative size", node("aten.zeros.default", [-4]), "cannot be computed"),
    ("range of 10**12", node("aten.arange.default", 10**12), "too large"),
    ("repeat 10**12 times", node("aten.repeat.default", {"node": "turn"}, [10**12]), "too large"),
    ("expanded 10**15 times", node("aten.expand.default", {"node": "turn"}, [10**15, 4]), "too large"),
    ("padded by 10**14", node("aten.constant_pad_nd.default", {"node": "turn"}, [10**14, 0]), "too large"),
    ("resized to 10**6 squared", lambda p: node("aten.upsample_nearest2d.default", {"node": _first_input(p)},
     [_BOOM, _BOOM])(p), "too large"),
    ("dimensions many", node("aten.reshape.default", {"node": "turn"}, [4, *[1] * 5000]), "operands that it does not"),
    ("operands many", node("aten.cat.default", [{"node": "turn"}] * 5000), "operands that it does not"),
    ("number of 2**60 bits", _doubling, "more than 62 bits"),
    ("constant large for one image", _large_for_one, "too large"),
    ("list times 10**12", _long_list, "operands that it does not take"),
    ("tensor cut into 2**25", _many_parts, "may cut a tensor"),
    ("item of a tensor", node("operator.getitem", {"node": "turn"}, 0), "operands that it does not take"),
    ("sum of tensors by Python", node("operator.add", {"node": "turn"}, {"node": "turn"}), "operands that it does"),
    ("division by 0", node("operator.mod", 1, 0), "cannot be computed"),
    ("text for a tensor", node("aten.relu.default", "x" * 100), "cannot be computed"),
    ("samples mixed", _mixing, "samples are mixed"),
]  # fmt: skip
