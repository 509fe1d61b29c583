"""Prices are data: each shipped file, each error of a user's own, and sums checked on paper."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hand_networks import Copies, image, spiking
from torch import nn

import spikezip
from spikezip.errors import InputError
from spikezip.measure import EnergyModel, count, energy_models, energy_record, price
from spikezip.measure.energy import DEFAULT_MODELS, unpriced
from spikezip.measure.work import OPERATIONS, Memory, Work
from spikezip.report.schema import Record

CHIPS = {"loihi-2018", "rolls-2015", "truenorth-2014"}


@pytest.fixture(scope="module")
def counts():
    """Three spikes of one neuron into 8 synapses each; see test_counts."""
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 3, 2, 1)), (1, 5, 5))
    return count(snn, image((1, 5, 5), {(0, 1, 1): 3}), 4)


@pytest.mark.parametrize("name", energy_models())
def test_each_model_that_comes_along(name, counts):
    model = EnergyModel.named(name)
    assert model.name == name
    assert len(model.source) > 40, "a figure without a source cannot be checked"
    assert model.verified, "says how it was checked, or that it was not"
    assert model.about
    energy = price(counts, model)
    assert (energy.qann is None) == (name in CHIPS)
    assert (energy.ratio is None) == (name in CHIPS)
    assert bool((energy.snn.diff() >= 0).all()), "energy adds up over time"
    assert float(energy.snn[-1]) == pytest.approx(sum(layer[0] for layer in energy.layers))


def test_published_figures():
    prices = EnergyModel.named("horowitz-45nm-float32").prices
    assert (prices["snn"]["ac"], prices["ann"]["mac"], prices["qann"]["mac"]) == (0.9, 4.6, 4.6)
    prices = EnergyModel.named("horowitz-45nm-int8").prices
    assert (prices["snn"]["ac"], prices["qann"]["mac"], prices["ann"]["mac"]) == (0.03, 0.23, 4.6)
    assert EnergyModel.named("loihi-2018").prices["snn"]["ac"] == 23.6
    assert EnergyModel.named("truenorth-2014").prices["snn"]["ac"] == 26
    assert EnergyModel.named("rolls-2015").prices["snn"]["ac"] == 0.077


def test_a_sum_on_paper(counts):
    model = EnergyModel.from_text("{name: n, source: s, prices: {ac: 1, mac: 100}}")
    energy = price(counts, model)
    # 25 MACs of the input at t=1; then 8 accumulates a step for 3 steps.
    assert energy.snn.tolist() == [2508, 2516, 2524, 2524]
    # The QANN: 25 MACs of the 1x1 convolution and 98 inside the borders of the 3x3.
    assert energy.qann == 12300
    assert energy.ratio is not None
    assert energy.ratio.tolist() == [2508 / 12300, 2516 / 12300, 2524 / 12300, 2524 / 12300]


def test_what_a_model_leaves_out_is_named(counts):
    few = unpriced(counts, EnergyModel.from_text("{name: n, source: s, prices: {ac: 1, mac: 100, compare: 1}}"))
    assert few[-1] == "memory accesses"
    assert {"add", "tracer_compare", "tracer_add", "address_add"} <= set(few)
    assert not {"ac", "mac", "compare", "mac_nonzero", "update", "mul"} & set(few)
    assert unpriced(counts, EnergyModel.named("lemaire-2022")) == ()
    memory = EnergyModel.from_text("{name: n, source: s, prices: {ac: 1, weight_read: 2}}")
    assert {"membrane_read", "spike_read"} <= set(unpriced(counts, memory))
    (model,) = energy_record(counts, [memory])["models"]
    assert model["unpriced"] == list(unpriced(counts, memory))


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (None, "2 layers are floats, .* by lemaire-2022 (of 32 bits), horowitz-45nm-int8 (of 8 bits), mem"),
        (16, "2 layers are integers of 16 bits, .* by horowitz-45nm-int8 (of 8 bits), mem"),
        (8, None),
    ],
)
def test_weights_wider_than_those_that_are_priced_are_told(bits, said):
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 3, 2, 1)), (1, 5, 5))
    if bits:
        snn = spikezip.spike(spikezip.to_integer(snn.qann, bits))
    record = spikezip.measure(snn, torch.rand(2, 1, 5, 5))
    found = record["energy"]["cautions"]
    assert len(found) == (said is not None)
    assert said is None or "weight_bits=8 " in found[0]
    assert said is None or re.search(re.escape(said).replace(r"\.\*", ".*"), found[0])
    alone = energy_record(count(snn, torch.rand(2, 1, 5, 5)), [EnergyModel.named("horowitz-45nm-float32")])
    assert alone["cautions"] == []


def test_tracers_are_in_the_bill(counts):
    dear = EnergyModel.from_text("{name: n, source: s, prices: {tracer_compare: 1, tracer_add: 10, tracer_write: 100}}")
    # Three spikes: the tracer is compared, changed and written for each.
    assert price(counts, dear).snn.tolist() == [111, 222, 333, 333]
    assert price(counts, dear).qann == 0


def test_networks_may_have_prices_of_their_own(counts):
    model = EnergyModel.from_text("{name: n, source: s, prices: {mac: 1}, qann: {mac: 0, mac_nonzero: 2}}")
    # Of the QANN's 25 + 98 MACs, the one of the pixel that is not 0, and its 8.
    assert price(counts, model).qann == 2 * (1 + 8)
    assert price(counts, model).ann == 123


def test_memories_cost_by_their_size():
    model = EnergyModel.from_text("{name: n, source: s, memory: {access: [[0, 0], [8192, 10], [32768, 20]]}}")
    for values, cost in ((2048, 2.5), (8192, 10), (20480, 15), (10**9, 20)):
        assert model.price("snn", "weight_read", {"weight": Memory(values, 8)}) == cost
    assert model.price("snn", "weight_read", {}) == 0
    assert model.price("snn", "ac", {}) == 0
    packed = EnergyModel.from_text("{name: n, source: s, memory: {access: [[0, 10], [9, 10]], word_bits: 64}}")
    assert packed.price("snn", "membrane_write", {"membrane": Memory(100, 32)}) == 5
    fixed = EnergyModel.from_text("{name: n, source: s, memory: {access: [[0, 0], [64, 64]], bits: {tracer: 32}}}")
    assert fixed.price("snn", "tracer_read", {"tracer": Memory(4, 3)}) == 16
    own = EnergyModel.from_text("{name: n, source: s, prices: {weight_read: 7}, memory: {access: [[0, 0], [64, 64]]}}")
    assert own.price("snn", "weight_read", {"weight": Memory(4, 8)}) == 7, "a price of its own goes first"


def test_reads_shared_by_several_operations():
    model = EnergyModel.from_text("{name: n, source: s, memory: {access: [[0, 8], [9, 8]], reuse: {qann: 4}}}")
    size = {"weight": Memory(4, 8), "membrane": Memory(4, 32)}
    assert model.price("qann", "weight_read", size) == 2
    assert model.price("snn", "weight_read", size) == 8
    assert model.price("qann", "membrane_read", size) == 8, "accumulators are not operands"


def test_lemaire_on_paper():
    # 8 accumulates that read 18 weights of 32 bits (72 bytes: 72/8192*10 pJ), read and write 18 membranes (72 bytes).
    work = Work({n: torch.tensor(8.0).double() for n in ("ac", "weight_read", "membrane_read", "membrane_write")})
    work.store("weight", 18, 8)
    work.store("membrane", 18, 32)
    energy = float(EnergyModel.named("lemaire-2022").energy("snn", work))
    assert energy == pytest.approx(8 * (0.1 + 3 * 72 / 8192 * 10))


def test_a_model_of_ones_own(tmp_path, counts):
    path = tmp_path / "my-chip.yaml"
    path.write_text("name: my-chip\nsource: our measurement, 2025\nprices:\n  ac: 2.5\n  mac: 9\n")
    model = EnergyModel.from_yaml(path)
    assert price(counts, model).snn[-1] == 25 * 9 + 24 * 2.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds no mapping"),
        ("{name: n, prices: {ac: 1}}", "'source' is missing"),
        ("{name: 3, source: s, prices: {ac: 1}}", "'name' is missing"),
        ("{name: n, source: s}", "it has no prices"),
        ("{name: n, source: s, prices: {acc: 1}}", "no operation 'acc' to price; there are ac, mac"),
        ("{name: n, source: s, prices: {ac: -1}}", "price of 'ac' is -1; it must be a number, 0 or more"),
        ("{name: n, source: s, prices: {ac: .nan}}", "price of 'ac' is nan"),
        ("{name: n, source: s, prices: {ac: cheap}}", "price of 'ac' is 'cheap'"),
        ("{name: n, source: s, prices: 4}", "'prices' is 4; it maps operations to pJ"),
        ("{name: n, source: s, prices: {ac: 1}, unit: nJ}", "unit is 'nJ'; prices are in pJ"),
        ("{name: n, source: s, prices: {ac: 1}, price: 1}", "no field 'price'"),
        ("{name: n, source: s, prices: {ac: 1}, networks: [gpu]}", "networks is"),
        ("{name: n, source: s, memory: {access: [[1, 2], [1, 3]]}}", "rising order"),
        ("{name: n, source: s, memory: {access: [1, 2]}}", "pairs"),
        ("{name: n, source: s, memory: {size: 3}}", "memory is"),
        ("{name: n, source: s, memory: {access: [[0, 1]], bits: {cache: 3}}}", "memory.bits"),
        ("{name: n, source: s, memory: {access: [[0, 1]], reuse: {gpu: 3}}}", "memory.reuse is"),
        ("{name: n, source: s, memory: {access: [[0, 1]], reuse: {qann: 0}}}", "1 or more"),
        ("{name: n, source: s, memory: {access: [[0, 1]], word_bits: 0}}", "1 or more"),
        ("{name: n, source: s, prices: {ac: 1}", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(text, message):
    with pytest.raises(InputError, match=r"my\.yaml") as error:
        EnergyModel.from_text(text, "my.yaml")
    assert message in str(error.value)


def test_a_missing_file_and_a_missing_name(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        EnergyModel.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"There are .*lemaire-2022"):
        EnergyModel.named("gpu")


def test_a_record_with_energy_is_what_a_report_reads():
    snn = spiking(Copies(1, nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))), (1, 5, 5))
    images = torch.rand(5, 1, 5, 5)
    content = spikezip.measure(snn, images, steps=4, energy_images=3).content
    record = Record.model_validate(json.loads(json.dumps(content)))
    assert record.energy is not None
    assert [m.name for m in record.energy.models] == list(DEFAULT_MODELS)
    assert all(m.qann_pj and m.ann_pj for m in record.energy.models)
    assert record.synops is not None
    assert record.synops[-1] == pytest.approx(sum(layer.synops[-1] for layer in record.energy.layers))
    assert sum(layer.snn_pj or 0 for layer in record.energy.layers) == pytest.approx(record.energy.models[0].snn_pj[-1])
    assert content["energy"]["images"] == 3
    assert record.audit is not None
    assert content["audit"] == spikezip.audit(snn, images, 4, limit=3).to_json()
    assert sum((r.acs or 0) + (r.macs or 0) for r in record.audit.rows) == pytest.approx(record.synops[-1])
    assert record.exactness is None
    assert {c["name"] for c in content["energy"]["counts"]} == set(OPERATIONS)
    without = spikezip.measure(snn, torch.rand(2, 1, 5, 5), steps=2, energy=False).content
    assert without["energy"] is None
    assert without["synops"] is without["audit"] is None


def test_an_integer_network_tells_its_arithmetic_and_the_thresholds_it_divided_out():
    model, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(16, 4)
    qann = spikezip.quantize(spikezip.morph(spikezip.capture(model, images[:1])), 8, images)
    snn = spikezip.spike(spikezip.to_integer(qann))
    content = json.loads(json.dumps(spikezip.measure(snn, images, steps=9).content, allow_nan=False))
    record = Record.model_validate(content)
    assert [e["arithmetic"] for e in content["exactness"]] == ["float32", "float32"]
    (layer,) = record.layers
    (scale,) = [float(p.detach()) for name, p in qann.named_parameters() if name.endswith("scale")]
    assert (layer.scale, layer.unit) == (1.0, scale)
    assert scale != 1


def test_two_models_of_one_name_are_refused():
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 3)), (1, 5, 5))
    model = EnergyModel.named("lemaire-2022")
    with pytest.raises(InputError, match="Two energy models are named 'lemaire-2022'"):
        spikezip.measure(snn, torch.rand(2, 1, 5, 5), energy_models=[model, model])


def test_ratios_stand_in_the_record(counts):
    found = energy_record(counts, [EnergyModel.named(n) for n in ("horowitz-45nm-int8", "loihi-2018")])
    assert list(found["ratio"]) == ["horowitz-45nm-int8"]
    model = found["models"][0]
    assert found["ratio"]["horowitz-45nm-int8"] == pytest.approx([e / model["qann_pj"] for e in model["snn_pj"]])
    assert found["models"][1]["qann_pj"] is None


ROOT = Path(__file__).resolve().parents[2]


def test_the_code_and_the_model_of_the_page_work():
    page = (ROOT / "docs" / "energy.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "energy.md", "exec"), {})
    (model,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert EnergyModel.from_text(model).name == "my-accelerator"
    table = page[page.index("| model |") : page.index("No paper was at hand")]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == set(energy_models())
