"""What is saved comes back: bit for bit, for every kind of network; and a bundle is written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundle_nets import SmallNet, convert
from safetensors import safe_open
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikezip.errors import BundleError, OutputError, StageError
from spikezip.export import load_bundle, load_network, load_snn, save_bundle
from spikezip.graph import capture, network, rewrite, shapes
from spikezip.graph.weights_hash import weights_sha256
from spikezip.morph import Morph, Residual, morph
from spikezip.quantize import quantize
from spikezip.quantize.integer import to_integer
from spikezip.quantize.quantizer import Quantizer
from spikezip.run import Engine, execute
from spikezip.spike import Constant, Even, SpikingNetwork, spike


class Attention(nn.Module):
    """Patches, a position embedding, causal attention, LayerNorm, GELU: what a ViT is made of."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 4, 8) * 0.1)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(tokens)).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(-1, 4, 8))
        return self.head(nn.functional.gelu(self.up(tokens)).mean(1))


def _same_run(before: SpikingNetwork, after: SpikingNetwork, images: Tensor, **how) -> None:
    one, two = execute(before, images, **how), execute(after, images, **how)
    assert all(torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=True))
    assert torch.equal(one.settled_at, two.settled_at)
    assert one.spikes.keys() == two.spikes.keys()
    assert all(torch.equal(one.spikes[name], two.spikes[name]) for name in one.spikes)


def _round_trip(net, folder: Path):
    first, second = folder / "first.spikezip", folder / "second.spikezip"
    assert save_bundle(net, first) == first
    loaded = load_bundle(first)
    save_bundle(loaded, second)
    assert first.read_bytes() == second.read_bytes(), "save(load(save)) is the same file"
    return loaded


@pytest.mark.parametrize("engine", list(Engine))
def test_small_net(small: SpikingNetwork, images: Tensor, tmp_path: Path, engine: Engine):
    loaded = _round_trip(small, tmp_path)
    assert loaded.encoding == small.encoding
    assert network.info(loaded.graph) == network.info(small.graph)
    _same_run(small, loaded, images, engine=engine)
    assert all(torch.equal(a, b) for a, b in zip(small.qann(images), loaded.qann(images), strict=True))


class Neighbours(nn.Module):
    """Distances, and values added or copied to places."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("places", torch.tensor([0, 2]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = torch.relu(self.a(x))
        y = h.index_copy(1, self.places, torch.ones_like(h[:, :2])).index_add(1, self.places, h[:, :2])
        y = y.masked_fill((h > 1) & (x[:, :1] > 0) | (h < y), 0.0)
        return self.b(y), torch.cdist(h[:, None], y[:, None]), nn.functional.pairwise_distance(h, y)


def test_distances_and_places(tmp_path: Path):
    torch.manual_seed(0)
    images = torch.randn(16, 3)
    qann = to_integer(quantize(morph(capture(Neighbours(), images[:1])), 8, images))
    _same_run(spike(qann), spike(_round_trip(qann, tmp_path)), images)


#: Functions of ``[B, 8]``; what they are made of has to be among the words of a bundle.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "assignment": lambda h: _assigned(h),
    "cosine": lambda h: F.cosine_similarity(h, h.roll(1, 1), -1),
    "cross": lambda h: torch.cross(h[:, :3], h[:, 3:6], dim=1) + torch.linalg.cross(h[:, :3], h[:, 3:6], dim=1),
    "products": lambda h: torch.linalg.vecdot(h, h) * torch.vdot(torch.ones(3), torch.ones(3)),
    "unpooling": lambda h: F.max_unpool1d(*F.max_pool1d(h.unflatten(1, (2, 4)), 2, return_indices=True), 2),
    "unpooling in 3d": lambda h: F.max_unpool3d(
        *F.max_pool3d(h.unflatten(1, (1, 2, 2, 2)), 2, return_indices=True), 2
    ),
    "filled": lambda h: h.index_fill(1, torch.tensor([0, 2]), 1.0),
    "reduced": lambda h: h.index_reduce(1, torch.tensor([0, 2]), h[:, :2], "amax"),
    "taken": lambda h: h + torch.take(torch.arange(8.0), torch.tensor([1])),
    "diagonals": lambda h: h @ (torch.diag(torch.arange(8.0)) + torch.diagflat(torch.arange(8.0))),
    "scattered": lambda h: torch.diagonal_scatter(h.unflatten(1, (2, 4)), h[:, :2], dim1=1, dim2=2),
    "blocks": lambda h: h @ torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)),
    "mesh": lambda h: h.unflatten(1, (2, 4)) + torch.meshgrid(torch.arange(2.0), torch.arange(4.0), indexing="ij")[0],
    "stacked": lambda h: torch.dstack([h, h]).flatten(1) + torch.column_stack([h, h]),
    "split": lambda h: torch.unsafe_chunk(h, 2, 1)[0],
    "summed": lambda h: h.sum_to_size(h.shape[0], 1),
    "windows": lambda h: h * torch.hann_window(8) + torch.hamming_window(8) + torch.logspace(0, 1, 8),
    "triangles": lambda h: h[:, torch.tril_indices(3, 3)[0]] + h[:, torch.triu_indices(3, 3)[1]],
    "frequencies": lambda h: (h + torch.fft.fftfreq(8))[:, :5] + torch.fft.rfftfreq(8),
    "spectra": lambda h: torch.fft.hfft(h)[:, :4] + torch.fft.ihfft(h).abs()[:, :4],
    "norms": lambda h: torch.linalg.norm(h, dim=1) + torch.linalg.matrix_norm(h.unflatten(1, (2, 4))),
    "renorm": lambda h: h.renorm(2, 0, 1.0),
    "sums": lambda h: h.nansum(1) + h.nanmean(1) + h.count_nonzero(1) + h.logcumsumexp(1)[:, 3],
    "differences": lambda h: h.diff(dim=1) + torch.cumulative_trapezoid(h, dim=1),
    "areas": lambda h: torch.trapezoid(h, dim=1) + torch.trapz(h, dim=1),
    "medians": lambda h: h.median(1)[0] + h.nanmedian(1)[0] + h.kthvalue(3, 1)[0] + h.round().mode(1)[0],
    "quantiles": lambda h: h.quantile(0.3, 1) + h.nanquantile(0.3, 1) + h.quantile(torch.tensor([0.3, 0.6]), 1)[0],
    "sorted": lambda h: h.argsort(1) + h.T.msort().T,
    "classes": lambda h: torch.bucketize(h, torch.tensor([0.1, 0.3])) + torch.searchsorted(h.cumsum(1), h).float(),
    "members": lambda h: torch.isin(h.round(), torch.tensor([1.0, 2.0])).float(),
    "matrices": lambda h: _matrices(h[:, :4].unflatten(1, (2, 2)), h[:, :2]),
    "distances": lambda h: sum(
        f(h, h + 1, reduction="none") for f in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.kl_div)
    ),
    "entropies": lambda h: F.binary_cross_entropy(h.sigmoid(), h.sigmoid(), reduction="none").sum(1)
    + F.binary_cross_entropy_with_logits(h, h.sigmoid(), reduction="none").sum(1)
    + F.cross_entropy(h, h.argmax(1), reduction="none"),
    "other names": lambda h: h.absolute() + h.negative() + h.fix() + h.arcsinh() + torch.arctan2(h, h + 1),
    "special": lambda h: torch.special.softmax(h, 1) + torch.special.log_softmax(h, 1) + torch.special.expit(h)
    + torch.special.erf(h) + torch.special.log1p(h) + torch.special.ndtr(h),
}  # fmt: skip


def _assigned(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 2] = 0.0
    h[:, 4:6] = h[:, 7:]
    h[:, 3] += h[:, 0]
    return h


def _matrices(a: Tensor, b: Tensor) -> Tensor:
    a = a @ a.mT + torch.eye(2)
    found = torch.linalg.solve(a, b) + torch.linalg.det(a)[:, None] + torch.linalg.slogdet(a)[1][:, None]
    return found + (torch.linalg.inv(a) + torch.linalg.cholesky(a) + torch.matrix_exp(a)).sum(1)


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = torch.relu(self.a(x))
        return tuple(function(h) for function in FUNCTIONS.values())


def test_everyday_functions(tmp_path: Path):
    torch.manual_seed(0)
    images = torch.randn(8, 3)
    snn = convert(Functions(), images)
    loaded = _round_trip(snn, tmp_path)
    for name, found, wanted in zip(FUNCTIONS, loaded.qann(images), snn.qann(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True, msg=name)


class Spectrogram(nn.Module):
    """A layer of power by frequency and time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(9, 4), nn.Linear(4, 2)
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x: Tensor) -> Tensor:
        power = torch.stft(x, 16, 8, window=self.window, return_complex=True).abs().square()
        return self.b(torch.relu(self.a(power.transpose(1, 2)))).mean(1)


def test_a_spectrogram(tmp_path: Path):
    torch.manual_seed(0)
    sounds = torch.randn(8, 64)
    snn = convert(Spectrogram().eval(), sounds)
    _same_run(snn, _round_trip(snn, tmp_path), sounds)


def test_attention_with_a_mask(images: Tensor, tmp_path: Path):
    torch.manual_seed(3)
    snn = convert(Attention(), images)
    buffers = dict(snn.graph.named_buffers())
    assert any(bool(torch.isinf(b).any()) for b in buffers.values()), "the mask holds -inf"
    _same_run(snn, _round_trip(snn, tmp_path), images)


def test_re_routed_residual_and_other_encodings(images: Tensor, tmp_path: Path):
    torch.manual_seed(4)
    ann = morph(capture(SmallNet().eval(), images[:1]), Morph(residual=Residual.RCR))
    snn = spike(quantize(ann, 8, images), Even(3), bias_encoding=Constant(), slew=2, initial_code=3)
    loaded = _round_trip(snn, tmp_path)
    assert (loaded.encoding, loaded.bias_encoding, loaded.slew, loaded.initial_code) == (Even(3), Constant(), 2, 3)
    _same_run(snn, loaded, images, steps=9)


def test_integer_network(images: Tensor, tmp_path: Path):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    qann = quantize(morph(capture(model, images[:1]), Morph()), 8, images)
    snn = spike(to_integer(qann, 6))
    loaded = _round_trip(snn, tmp_path)
    assert network.note(loaded.graph, "exactness") == network.note(snn.graph, "exactness")
    assert network.note(loaded.graph, "exactness"), "there is something to compare"
    _same_run(snn, loaded, images)


def test_double_precision(images: Tensor, tmp_path: Path):
    torch.manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    snn = convert(model, images.double())
    loaded = _round_trip(snn, tmp_path)
    assert {t.dtype for t in loaded.graph.parameters()} == {torch.float64}
    _same_run(snn, loaded, images.double())


def test_qann_comes_back_trainable(images: Tensor, tmp_path: Path):
    torch.manual_seed(7)
    qann = quantize(morph(capture(SmallNet().eval(), images[:1]), Morph()), 4, images)
    next(iter(qann.parameters())).requires_grad_(False)
    loaded = _round_trip(qann, tmp_path)
    assert isinstance(loaded, fx.GraphModule)
    assert network.info(loaded) == network.info(qann)
    assert loaded.training == qann.training
    before, after = dict(qann.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys()
    assert [before[n].requires_grad for n in before] == [after[n].requires_grad for n in before]
    assert set(before[n].requires_grad for n in before) == {True, False}
    loaded(images)[0].sum().backward()
    scales = [m.scale for m in loaded.modules() if isinstance(m, Quantizer)]
    assert scales
    assert all(s.grad is not None for s in scales)


def test_ann_comes_back(images: Tensor, tmp_path: Path):
    ann = capture(SmallNet().eval(), images[:1])
    loaded = _round_trip(ann, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ann(images), loaded(images), strict=True))
    # Every mark that later stages read is there: quantizing either gives the same network.
    assert [network.origin(n) for n in ann.graph.nodes] == [network.origin(n) for n in loaded.graph.nodes]
    assert [n.meta.get("spec") for n in ann.graph.nodes] == [n.meta.get("spec") for n in loaded.graph.nodes]
    one, two = (quantize(morph(n, Morph()), 4, images) for n in (ann, loaded))
    assert weights_sha256(one) == weights_sha256(two)


def test_a_neuron_asked_for_is_kept(images: Tensor, tmp_path: Path):
    ann = morph(capture(SmallNet().eval(), images[:1]), Morph())
    conv = next(n for n in ann.graph.nodes if network.op_name(n) == "conv2d")
    conv.meta["neuron"] = "signed"
    assert [n.meta.get("neuron") for n in load_network(save_bundle(ann, tmp_path / "a")).graph.nodes] == [
        n.meta.get("neuron") for n in ann.graph.nodes
    ]


def test_where_the_batch_lies_is_kept(tmp_path: Path):
    class TokensFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.relu(x.transpose(0, 1).reshape(-1, 3) * 2.0)  # the batch is the fastest index
            return tokens.reshape(5, -1, 3).sum(0) + x.reshape(-1, 3)[5 * torch.arange(x.size(0))]

    ann = capture(TokensFirst(), torch.rand(2, 5, 3))
    specs = [network.spec(n) for n in ann.graph.nodes if "spec" in n.meta]
    assert not all(spec.outer for spec in specs) and any(spec.placed for spec in specs)
    loaded = load_network(save_bundle(ann, tmp_path / "a.spikezip"))
    assert [n.meta.get("spec") for n in loaded.graph.nodes] == [n.meta.get("spec") for n in ann.graph.nodes]


class OddlyNamed(nn.Module):
    """Names that Python's names cannot be, and two that differ in that alone."""

    def __init__(self):
        super().__init__()
        names = ("layer-1", "layer_1", "a->b", "1 2", "Über")
        self.d = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for name in names})
        self.p = nn.ParameterDict({"weight-x": torch.randn(4)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.d.values():
            x = torch.relu(layer(x)) + x
        return x * self.p["weight-x"]


def test_names_that_are_no_names_of_python_are_made_plain(tmp_path: Path):
    torch.manual_seed(0)
    model, x = OddlyNamed().eval(), torch.randn(8, 4)
    ann = capture(model, x)
    assert torch.equal(ann(x), model(x))
    assert {"d.layer_1.0.weight", "d.layer_1_.0.weight", "p.weight_x"} <= dict(ann.named_parameters()).keys()
    assert "d.layer-1.0" in {network.origin(n) for n in ann.graph.nodes}
    snn = spike(to_integer(quantize(morph(ann), 8, x)))
    loaded = load_snn(save_bundle(snn, tmp_path / "odd.spikezip"))
    assert torch.equal(loaded.qann(x), snn.qann(x))


def test_tied_weights_stay_tied(images: Tensor, tmp_path: Path):
    ann = capture(SmallNet().eval(), images[:1])
    # torch.export reads tied weights under one name; give them two, as a network of other origin may have.
    nodes = [n for n in ann.graph.nodes if network.op_name(n) == "conv2d"]
    shared = nodes[1].args[1]
    assert shared is nodes[2].args[1]
    rewrite.put_tensor(ann, "tied.weight", network.get_tensor(ann, shared.target))
    with ann.graph.inserting_before(nodes[2]):
        other = ann.graph.get_attr("tied.weight")
    nodes[2].replace_input_with(shared, other)
    ann.recompile()
    shapes.annotate(ann)
    loaded = _round_trip(ann, tmp_path)
    assert loaded.get_parameter("tied.weight") is loaded.get_parameter(shared.target)
    with safe_open(tmp_path / "first.spikezip", framework="pt") as file:
        assert len(set(file.keys()) & {"tied.weight", shared.target}) == 1


def test_memory_layout_is_kept(images: Tensor, tmp_path: Path):
    # Layout chooses the kernel, and the kernel the last bits.
    ann = capture(SmallNet().eval(), images[:1])
    name = next(n for n, p in ann.named_parameters() if p.dim() == 4 and p.shape[1] > 1)
    weight = ann.get_parameter(name)
    weight.data = weight.data.to(memory_format=torch.channels_last)
    loaded = _round_trip(ann, tmp_path)
    assert loaded.get_parameter(name).stride() == weight.stride()
    assert not loaded.get_parameter(name).is_contiguous()
    assert torch.equal(loaded.get_parameter(name), weight)


def test_a_loaded_network_does_not_hang_on_its_file(small: SpikingNetwork, images: Tensor, tmp_path: Path):
    path = save_bundle(small, tmp_path / "a.spikezip")
    loaded = load_snn(path)
    path.write_bytes(bytes(path.stat().st_size))
    _same_run(small, loaded, images)


def test_provenance_is_kept(small: SpikingNetwork, tmp_path: Path):
    about = {"model": "small", "levels": [4, 3], "share": 0.5, "seed": None}
    path = save_bundle(small, tmp_path / "a.spikezip", provenance=about)
    loaded = load_snn(path)
    assert network.note(loaded.graph, "provenance") == about
    assert save_bundle(loaded, tmp_path / "b.spikezip").read_bytes() == path.read_bytes()
    assert network.note(small.graph, "provenance") is None, "the network that was saved is left as it was"


def test_the_file_is_safetensors_and_json(small: SpikingNetwork, tmp_path: Path):
    path = save_bundle(small, tmp_path / "a.spikezip")
    with safe_open(path, framework="pt") as file:
        assert len(file.metadata()) == 1, "safetensors writes several in an order of its own"
        document = json.loads(file.metadata()["spikezip"])
        assert set(file.keys()) == set(document["tensors"])
    assert document["format"] == "spikezip.bundle/2"
    assert document["weights_sha256"] == weights_sha256(small.graph)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_others_may_read_what_they_may_read_of_any_new_file(small: SpikingNetwork, tmp_path: Path):
    before = os.umask(0o022)
    try:
        saved = save_bundle(small, tmp_path / "net.spikezip")
    finally:
        os.umask(before)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o644


def test_what_exists_is_kept_unless_asked(small: SpikingNetwork, tmp_path: Path):
    path = tmp_path / "a.spikezip"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        save_bundle(small, path)
    assert path.read_text() == "precious"
    save_bundle(small, path, overwrite=True)
    assert isinstance(load_bundle(path), SpikingNetwork)
    assert os.listdir(tmp_path) == ["a.spikezip"]


@pytest.mark.parametrize("where", ["missing/a.spikezip", "file/a.spikezip", "folder"])
def test_places_that_cannot_be_written(small: SpikingNetwork, tmp_path: Path, where: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=where.split("/")[0]):
        save_bundle(small, tmp_path / where, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(small: SpikingNetwork, tmp_path: Path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="closed"):
        save_bundle(small, tmp_path / "closed" / "a.spikezip")


def test_nothing_half_written_where_a_network_cannot_be_saved(small: SpikingNetwork, tmp_path: Path):
    path = save_bundle(small, tmp_path / "a.spikezip")
    before = path.read_bytes()
    broken = network.fork(small.graph)
    threshold = next(b for n, b in broken.named_buffers() if n.endswith("threshold"))
    threshold.fill_(-1.0)
    with pytest.raises(StageError, match=r"threshold is -1\.0"):
        save_bundle(SpikingNetwork(broken, small.encoding, small.bias_encoding), path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.spikezip"]


def test_what_a_bundle_cannot_hold_is_refused_by_name(images: Tensor, tmp_path: Path):
    ann = capture(SmallNet().eval(), images[:1])
    network.remark(ann, secret=object())
    with pytest.raises(StageError, match=r"a object .* cannot be written into a bundle"):
        save_bundle(ann, tmp_path / "a.spikezip")
    with pytest.raises(StageError, match="did not come from spikezip"):
        save_bundle(fx.symbolic_trace(nn.ReLU()), tmp_path / "a.spikezip")
    ann = capture(SmallNet().eval(), images[:1])
    node = next(n for n in ann.graph.nodes if network.op_name(n) == "relu")
    node.target = torch.relu
    with pytest.raises(StageError, match=f"at the node {node.name!r}: the function 'relu'"):
        save_bundle(ann, tmp_path / "a.spikezip")
    node.target = torch.ops.aten.corrcoef.default
    with pytest.raises(StageError, match=r"aten.corrcoef.default is not one of .* Write this part of forward with"):
        save_bundle(ann, tmp_path / "a.spikezip")
    ann = capture(SmallNet().eval(), images[:1])
    ann.register_buffer("idle", torch.zeros(1))
    with pytest.raises(StageError, match="'idle' is read by no node"):
        save_bundle(ann, tmp_path / "a.spikezip")
    assert not os.listdir(tmp_path)


def test_loaders_that_want_one_stage(small: SpikingNetwork, tmp_path: Path):
    snn = save_bundle(small, tmp_path / "snn.spikezip")
    qann = save_bundle(small.qann, tmp_path / "qann.spikezip")
    with pytest.raises(StageError, match="holds an SNN"):
        load_network(snn)
    with pytest.raises(StageError, match="stage QANN, not an SNN"):
        load_snn(qann)
    with pytest.raises(BundleError, match="no such file"):
        load_snn(tmp_path / "nothing")


@pytest.mark.parametrize("path", [b"net.spikezip", 3, None])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(BundleError, match=f"A {type(path).__name__} names no file"):
        load_snn(path)
