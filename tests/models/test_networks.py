"""The networks: shapes, gradients, export, and the published weights and accuracy of the CIFAR ResNets."""

import pytest
import torch
from safetensors.torch import load_file

from spikezip import models
from spikezip.data import open_data


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (models.resnet20, 269_722),
        (models.resnet32, 464_154),
        (models.resnet44, 658_586),
        (models.resnet56, 853_018),
        (models.resnet18, 11_173_962),
        (models.resnet34, 21_282_122),
        (models.vgg16, 14_724_042),
    ],
)
def test_parameter_counts_are_the_published_ones(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("name", ["digits", "resnet20", "resnet18", "vgg16"])
def test_every_network_exports_with_a_dynamic_batch(name):
    found = models.resolve(f"spikezip:{name}")
    program = torch.export.export(found.module, (found.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    five = torch.cat([found.example, found.example, found.example[:1]])
    assert torch.equal(program.module()(five), found.module(five))


@pytest.mark.parametrize("name", ["digits", "resnet20", "resnet18", "vgg16"])
def test_classes_and_channels_are_chosen_and_every_parameter_learns(name):
    found = models.resolve(f"spikezip:{name}", num_classes=7, in_channels=2)
    module = found.module.train()
    logits = module(found.example)
    assert logits.shape == (2, 7)
    assert found.example.shape[1] == 2
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_the_padded_shortcut_keeps_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4) + 1
    y = models.PaddedShortcut(2)(x)
    assert y.shape == (2, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56"])
def test_published_weights_fit_strictly(name, data_root):
    state = load_file(data_root / f"cifar10_{name}.safetensors")
    module = models.MODELS[name].build(10, 3)
    module.load_state_dict(state, strict=True)
    assert torch.equal(module.state_dict()["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])


def test_pretrained_resnet20_classifies_as_published(data_root):
    found = models.resolve("spikezip:resnet20", weights="pretrained", root=data_root)
    data = open_data("cifar10", root=data_root, mean=found.mean, std=found.std)
    images, labels = data.tensors("test", limit=1000)
    with torch.no_grad():
        accuracy = (found.module(images).argmax(1) == labels).double().mean().item()
    # 91.73 % on all 10,000; three standard errors of 1,000 images below are 0.89, and wrong channels give < 0.85.
    assert accuracy >= 0.90


def test_the_digits_network_learns_the_digits():
    data = open_data("digits")
    torch.manual_seed(0)
    module = models.digits().train()
    steps = 20 * data.num_batches("train", 64, drop_last=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for epoch in range(20):
        for images, labels in data.batches("train", 64, seed=0, epoch=epoch, augment=True, drop_last=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
            schedule.step()
    images, labels = data.tensors("test")
    with torch.no_grad():
        accuracy = (module.eval()(images).argmax(1) == labels).double().mean().item()
    assert accuracy >= 0.98
