"""A batch that lies between other dimensions: what a run says of each image is what it says of it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import spikezip
from spikezip.graph import network
from spikezip.run import Engine, Settled, State, execute
from spikezip.spike.neuron import STBIF


class Between(nn.Module):
    """Pixels as rows of one matrix, ``[8 * B * 8, 4]``: the images are neither its slowest index nor its fastest."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.out = nn.Conv2d(3, 4, 1), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        pixels = torch.relu(self.conv(x)).permute(2, 0, 3, 1).reshape(-1, 4)
        pixels = torch.relu(self.hidden(pixels))
        return self.out(pixels.view(8, x.shape[0], 8, 5).mean((0, 2)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8) * torch.tensor([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.5, 2.0]).view(-1, 1, 1, 1)
    images[::2, :, :4] = 0  # half of an image says nothing
    return images


@pytest.fixture(scope="module")
def snn(images: Tensor) -> spikezip.SNN:
    torch.manual_seed(0)
    return spikezip.convert(Between(), images[:1], images, levels=8)


def test_its_place_is_known(snn, tmp_path):
    loaded = spikezip.load(snn.save(tmp_path / "between.spikezip"))
    for one in (snn, loaded):
        specs = [network.spec(node) for node, _ in network.modules_of(one.graph, STBIF)]
        assert [(s.outer, s.inner, s.stretch) for s in specs][-1] == (False, False, 8)


@pytest.mark.parametrize("engine", [Engine.REFERENCE, Engine.EVENT])
def test_an_image_is_told_of_as_alone(snn, images, engine):
    together = execute(snn, images, engine=engine)
    alone = [execute(snn, image[None], engine=engine) for image in images]
    assert together.settled_at.tolist() == [int(one.settled_at) for one in alone]
    assert len(set(together.settled_at.tolist())) > 1
    for layer, counts in together.spikes.items():
        assert counts.sum(0).tolist() == [int(one.spikes[layer].sum()) for one in alone]
        assert torch.equal(together.codes[layer], torch.cat([one.codes[layer] for one in alone]))


@pytest.mark.parametrize("engine", [Engine.REFERENCE, Engine.EVENT])
def test_who_leaves_settled_has_the_qanns_answer(snn, images, engine):
    run = execute(snn, images, engine=engine, early_exit=Settled())
    assert torch.equal(run.answer, snn.qann(images))
    again = execute(snn, images.flip(0), engine=engine, state=execute(snn, images, engine=engine).state, batch=4)
    assert torch.equal(again.answer, snn.qann(images.flip(0)))


@pytest.mark.parametrize("engine", [Engine.REFERENCE, Engine.EVENT])
def test_where_nobody_knows_whose_a_neuron_is_all_settle_together(images, engine):
    torch.manual_seed(0)
    snn = spikezip.convert(Between(), images[:1], images, levels=8)
    for node, _ in network.modules_of(snn.graph, STBIF):
        spec = network.spec(node)
        node.meta["spec"] = spec if spec.outer else replace(spec, stretch=0)
    run = execute(snn, images, engine=engine, early_exit=Settled())
    assert torch.equal(run.answer, snn.qann(images))
    state = execute(snn, images, engine=engine).state
    again = execute(snn, images.flip(0), engine=engine, state=State(state.tracers, state.memory), batch=4)
    assert torch.equal(again.answer, snn.qann(images.flip(0)))
