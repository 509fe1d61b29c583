"""A network as one file: tensors in safetensors, everything else as JSON in the same file's header. Never pickle."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import fx, nn

from spikezip.errors import BundleError, OutputError, StageError
from spikezip.export.graph_json import read_graph, write_graph
from spikezip.export.leaves import write_leaf
from spikezip.export.tensors import check_facts, hang, read_tensors, stored_tensors, write_tensors
from spikezip.export.trial import MOST_VALUES, check_graph, check_weights
from spikezip.export.values import decode, dumps, encode, fields, loads
from spikezip.export.vocabulary import DTYPES, STORED_DTYPES
from spikezip.graph import network
from spikezip.graph.network import InputSpec, Stage
from spikezip.graph.weights_hash import weights_sha256
from spikezip.measure.provenance import versions
from spikezip.measure.saving import replacing
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike.encoding import Encoding, encoding_text, parse_encoding
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork, tracer_shape

KEY = "spikezip"  #: of the header; the one key, as safetensors does not keep the order of several
VERSION = 2  #: since 2, weights of few bits are packed; files of version 1 are read
_FORMAT = re.compile(r"spikezip\.bundle/([0-9]{1,9})")
_LONGEST = 1 << 25  #: bytes of JSON
_MOST_INPUTS = 64
_ENCODING = re.compile(r"pulse|constant|even:[1-9][0-9]{0,5}|shares:(0|[1-9][0-9]{0,3})(/(0|[1-9][0-9]{0,3})){0,255}")
_ADVICE = "Get the file anew from whoever made it, or convert the network again."
_DOCUMENT = {
    "format": str, "spikezip": str, "stage": str, "training": bool, "inputs": list, "notes": list,
    "encoding": (str, type(None)), "bias_encoding": (str, type(None)), "modules": dict, "tensors": dict,
    "nodes": list, "weights_sha256": str, "sha256": str,
}  # fmt: skip


def save_bundle(
    net: SpikingNetwork | fx.GraphModule,
    path: str | Path,
    *,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Save a network as one file.

    The file is a safetensors file: weights and thresholds as tensors; graph, levels, encodings, notes and the SHA-256
    of all of it as JSON in its header. It is written beside its place and put there in one step, after it has been read
    back: there is never half a bundle, nor one that cannot be loaded. Equal networks give equal bytes.

    Args:
        net: an SNN; or an ANN or QANN, to go on with later.
        path: where to, such as ``net.spikezip``.
        overwrite: replace what is there.
        provenance: where the network is from, as JSON data; kept as its note ``"provenance"``.

    Returns:
        The path.

    Raises:
        OutputError: the file exists, or cannot be written.
        StageError: ``net`` is no network of spikezip, or holds something a bundle cannot (named).
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"'{target}' is a folder. Name a file, such as '{target / 'net.spikezip'}'.")
    if not overwrite and (target.exists() or target.is_symlink()):
        raise OutputError(f"'{target}' exists already. Give another name, or overwrite=True.")
    try:
        document, tensors = _document(net, provenance)
        with replacing(target) as draft:
            draft.write_bytes(save(tensors, {KEY: dumps(document)}))
            _read(draft)
    except BundleError as problem:
        raise StageError(f"This network cannot be saved: {problem}.") from None
    return target


def load_bundle(path: str | Path) -> SpikingNetwork | fx.GraphModule:
    """Load what :func:`save_bundle` saved: an SNN, or an ANN or QANN as a ``GraphModule``. On the CPU.

    A file is not trusted: it can name only pure operations, is checked against its own SHA-256, and is run on shapes
    (not values) before it is handed out. Nothing of it is executed as code.

    Raises:
        BundleError: the file is missing, damaged, foreign, hostile, or from a newer spikezip.
    """
    if not isinstance(path, str | os.PathLike):
        raise BundleError(f"A {type(path).__name__} names no file; give the path of a bundle.")
    try:
        return _read(Path(path))
    except BundleError as problem:
        advice = "" if "upgrade" in str(problem) else f" {_ADVICE}"
        raise BundleError(f"'{path}' cannot be loaded: {problem}.{advice}") from None


def load_snn(path: str | Path) -> SpikingNetwork:
    """Load an SNN (see :func:`load_bundle`); StageError if the file holds an ANN or QANN."""
    net = load_bundle(path)
    if not isinstance(net, SpikingNetwork):
        stage = network.info(net).stage.value
        raise StageError(
            f"'{path}' holds a network at stage {stage}, not an SNN. Call spike() on a QANN, and save that."
        )
    return net


def load_network(path: str | Path) -> fx.GraphModule:
    """Load an ANN or QANN (see :func:`load_bundle`); StageError if the file holds an SNN."""
    net = load_bundle(path)
    if isinstance(net, SpikingNetwork):
        raise StageError(f"'{path}' holds an SNN, not an ANN or QANN. Its QANN is load_snn(path).qann.")
    return net


def _document(net: Any, provenance: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    spiking = isinstance(net, SpikingNetwork)
    gm = net.graph if spiking else net
    about = network.info(gm)
    notes = dict(about.notes)
    if provenance is not None:
        notes["provenance"] = dict(provenance)
    facts, tensors = write_tensors(stored_tensors(gm))
    called = [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]
    document = {
        "format": f"spikezip.bundle/{VERSION}",
        "spikezip": versions()["spikezip"],
        "stage": about.stage.value,
        "training": gm.training,
        "inputs": [{"shape": list(s.shape), "dtype": str(s.dtype).removeprefix("torch.")} for s in about.inputs],
        "notes": [[key, encode(value)] for key, value in notes.items()],
        "encoding": _encoding_text(net.encoding) if spiking else None,
        "bias_encoding": _encoding_text(net.bias_encoding) if spiking else None,
        "modules": {name: write_leaf(gm.get_submodule(name), name) for name in called},
        "tensors": facts,
        "nodes": write_graph(gm.graph),
        "weights_sha256": weights_sha256(gm),
    }
    document["sha256"] = _sha256(document)
    return document, tensors


def _encoding_text(encoding: Encoding) -> str:
    text = encoding_text(encoding)
    if not _ENCODING.fullmatch(text) or parse_encoding(text) != encoding:
        raise BundleError(
            f"the encoding {encoding} is not one of those a bundle can hold; if it is complete at a fixed step, "
            "write it as Shares((parts by step 1, by step 2, ...))"
        )
    return text


def _sha256(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(dumps(rest).encode()).hexdigest()


def _read(path: Path) -> SpikingNetwork | fx.GraphModule:
    if not path.is_file():  # a pipe or device would be read for ever
        raise BundleError("it is no file" if path.exists() else "there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            document = _header(file.metadata())
            names = set(file.keys())
            for name in names:
                if file.get_slice(name).get_dtype() not in STORED_DTYPES:
                    raise BundleError(f"the tensor {name[:80]!r} is of a type that networks do not have")
            facts = check_facts(document["tensors"], names)
            tensors = read_tensors(facts, file.get_tensor)
    except (SafetensorError, OSError, ValueError, RuntimeError) as reason:
        raise BundleError(f"it is no sound safetensors file ({str(reason)[:200]})") from None
    return _rebuild(document, tensors)


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(KEY)
    if text is None or metadata is None or len(metadata) != 1:
        raise BundleError("it is a safetensors file, but none that spikezip wrote")
    if len(text) > _LONGEST:
        raise BundleError(f"its header is longer than {_LONGEST} bytes")
    document = loads(text)
    named = document.get("format") if isinstance(document, dict) else None
    match = _FORMAT.fullmatch(named) if isinstance(named, str) else None
    if match is None:
        raise BundleError(f"its format is {str(named)[:80]!r}, not a bundle of spikezip")
    if not 1 <= int(match[1]) <= VERSION:
        raise BundleError(
            f"its format is {named}; this spikezip reads versions 1 to {VERSION}: "
            "upgrade spikezip (pip install --upgrade spikezip)"
        )
    fields(document, "its header", _DOCUMENT)
    if _sha256(document) != document["sha256"]:
        raise BundleError("its header is damaged: it does not have the SHA-256 that it states")
    return document


def _rebuild(document: dict[str, Any], tensors: dict[str, Any]) -> SpikingNetwork | fx.GraphModule:
    gm, modules = hang(tensors, document["modules"])
    inside = {f"{name}.{own}" for name, module in modules.items() for own in dict(module.state_dict())}
    graph = read_graph(document["nodes"], modules.keys(), tensors.keys() - inside)
    _check_used(graph, modules.keys(), tensors.keys() - inside)
    try:
        gm.graph = graph
        gm.graph.lint()
    except Exception as reason:  # torch.fx compiles the graph here; its names are checked, so this is the last resort
        raise BundleError(f"its graph is not sound ({type(reason).__name__}: {str(reason)[:200]})") from None
    inputs = _inputs(document["inputs"], sum(n.op == "placeholder" for n in graph.nodes))
    stage = _stage(document, modules)
    network.mark(gm, stage, inputs, _notes(document["notes"]))
    gm.train(document["training"])
    _annotate(gm, modules)
    for node, _ in (*network.modules_of(gm, STBIF), *network.modules_of(gm, Quantizer)):
        if network.spec(node).dtype.is_complex:
            raise BundleError(f"the neurons {str(node.target)!r} receive complex numbers")
    for node, quantizer in network.modules_of(gm, Quantizer):
        quantizer.batch_dim = network.spec(node).batch_dim or 0
    for node, neuron in network.modules_of(gm, STBIF):
        if neuron.initial_codes is not None and neuron.initial_codes.shape != tracer_shape(network.spec(node)):
            raise BundleError(f"the initial codes of {str(node.target)!r} do not have the shape of its tracers")
    check_weights(gm, tensors)
    if weights_sha256(gm) != document["weights_sha256"]:
        raise BundleError("its tensors are damaged: they do not have the SHA-256 that it states")
    if stage is not Stage.SNN:
        return gm
    return SpikingNetwork(gm, _encoding(document["encoding"]), _encoding(document["bias_encoding"]))


def _check_used(graph: fx.Graph, modules: Any, tensors: Any) -> None:
    used = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    idle = sorted({*modules, *tensors} - used)
    if idle:
        raise BundleError(f"nothing in its graph uses {idle[0]!r}")


def _inputs(rows: list[Any], count: int) -> list[InputSpec]:
    if not 1 <= len(rows) == count <= _MOST_INPUTS:
        raise BundleError(f"it states {len(rows)} inputs, but its graph has {count}")
    found = []
    for index, row in enumerate(rows):
        where = f"input {index}"
        fields(row, where, {"shape": list, "dtype": str})
        if row["dtype"] not in DTYPES:
            raise BundleError(f"{where} has the type {row['dtype'][:40]!r}, which is none of {', '.join(DTYPES)}")
        values = 1
        for size in row["shape"]:
            if type(size) is not int or not 1 <= size <= MOST_VALUES or len(row["shape"]) > 16:
                raise BundleError(f"{where} has the shape {str(row['shape'])[:80]}, which no input has")
            values *= size
        if values > MOST_VALUES // 4:
            raise BundleError(f"{where} has the shape {row['shape']}: too large")
        found.append(InputSpec(tuple(row["shape"]), DTYPES[row["dtype"]]))
    return found


def _notes(rows: list[Any]) -> list[tuple[str, Any]]:
    if not all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in rows):
        raise BundleError("its notes are not pairs of a name and a value")
    return [(decode(key, {}), decode(value, {})) for key, value in rows]


def _stage(document: dict[str, Any], modules: Mapping[str, nn.Module]) -> Stage:
    if document["stage"] not in Stage.__members__:
        raise BundleError(f"its stage is {document['stage'][:40]!r}, none of {', '.join(Stage.__members__)}")
    stage = Stage[document["stage"]]
    neuron = {Stage.ANN: None, Stage.QANN: Quantizer, Stage.SNN: STBIF}[stage]
    for name, module in modules.items():
        if isinstance(module, Quantizer | STBIF) and type(module) is not neuron:
            raise BundleError(f"it states to be at stage {stage.value}, but {name!r} is a {type(module).__name__}")
    if neuron and not any(type(module) is neuron for module in modules.values()):
        raise BundleError(f"it states to be at stage {stage.value}, but holds no {neuron.__name__}")
    if stage is not Stage.SNN and (document["encoding"], document["bias_encoding"]) != (None, None):
        raise BundleError(f"it states to be at stage {stage.value}, which has no encoding")
    return stage


def _encoding(text: str | None) -> Encoding:
    if text is None or not _ENCODING.fullmatch(text):
        raise BundleError(f"its encoding is {str(text)[:40]!r}; known: pulse, constant, even:N, shares:A/B")
    try:
        return parse_encoding(text)
    except StageError:
        raise BundleError(f"its encoding is {text[:40]!r}, which never completes") from None


def _annotate(gm: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
    # Neurons take their state as a second operand, so stand-ins of the same shapes take their places for a while.
    for name in modules:
        gm.set_submodule(name, nn.Identity())
    check_graph(gm)
    for name, module in modules.items():
        gm.set_submodule(name, module)
