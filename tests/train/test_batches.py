"""Datasets of a user's own as data to train on: what transforms draw follows from the arguments alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import spikezip
from spikezip.errors import DataError, InputError, UnknownNameError
from spikezip.train import SGD, DatasetBatches, Plan, TensorBatches, train


class Noisy(Dataset):
    """Points, each moved a little by every generator that a transform may use."""

    def __init__(self, count: int = 40):
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(count, 6, generator=generator)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int):
        noise = torch.randn(6) + random.gauss(0, 1) + float(np.random.randn())
        return self.points[index] + 0.1 * noise, int(self.points[index, 0] > 0)


def batches(data, **options):
    return list(data.batches("train", 8, **{"seed": 3, "epoch": 2, **options}))


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_follow_from_seed_and_epoch_and_leave_the_generators_alone():
    data = DatasetBatches(Noisy())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    wanted = batches(data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    torch.manual_seed(7)
    assert equal(batches(data), wanted)
    assert equal(batches(data, start=2), wanted[2:])
    assert not equal(batches(data, epoch=1), wanted)
    assert not equal(batches(data, seed=1), wanted)
    assert equal(batches(DatasetBatches(Noisy(), workers=1)), wanted)
    halves = [batches(data, rank=rank, world_size=2) for rank in (0, 1)]
    for (images, labels), *parts in zip(wanted, *halves, strict=True):
        assert torch.equal(torch.stack([p[0] for p in parts], 1).flatten(0, 1), images)
        assert torch.equal(torch.stack([p[1] for p in parts], 1).flatten(), labels)


def test_splits():
    data = DatasetBatches(Noisy(41), Noisy(5))
    assert (data.count("train"), data.count("val")) == (41, 5)
    assert [len(labels) for _, labels in data.batches("val", 4, shuffle=False)] == [4, 1]
    assert len(batches(data, drop_last=True)) == 5
    assert DatasetBatches(Noisy()).count("val") == 0
    with pytest.raises(UnknownNameError, match="val"):
        data.count("test")


def test_a_training_that_is_resumed_sees_the_same_images(tmp_path):
    def plan(epochs: int) -> Plan:
        return Plan(epochs=epochs, batch=8, optimizer=SGD(0.1), validation_split="val", final_rate=1.0)

    model, data = torch.nn.Linear(6, 2), DatasetBatches(Noisy(), Noisy(8))
    whole = train(model, data, plan(2))
    images = torch.stack([data.train[i][0] for i in range(4)])
    assert not torch.equal(whole.network(images), model(images))
    assert whole.history[-1].validation["accuracy"] > 0.5
    again = train(model, data, plan(2))
    assert torch.equal(whole.network(images), again.network(images))


@pytest.mark.parametrize(
    ("dataset", "error", "says"),
    [
        (DataLoader(Noisy()), InputError, "its .dataset"),
        (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), DataError, "no images"),
        (TensorDataset(torch.zeros(3, 2)), InputError, "class number"),
        ([("image", 1)], InputError, "ToTensor"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset, error, says):
    with pytest.raises(error, match=says):
        DatasetBatches(dataset)


def test_fine_tuning_with_a_loader_says_what_to_give():
    images, labels = torch.rand(32, 6), torch.randint(0, 2, (32,))
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    qann = spikezip.quantize(spikezip.morph(spikezip.capture(model, images[:1])), 4, images)
    dataset = TensorDataset(images, labels)
    with pytest.raises(InputError, match="DatasetBatches"):
        spikezip.finetune(qann, DataLoader(dataset), Plan(epochs=1))
    plan = Plan(epochs=1, batch=8, validation_split=None, optimizer=SGD(0.1), augment=False)
    found = spikezip.finetune(qann, DatasetBatches(dataset), plan)
    assert torch.equal(found(images), spikezip.finetune(qann, TensorBatches(images, labels), plan)(images))
