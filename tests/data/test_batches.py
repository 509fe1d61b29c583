"""Batches: they depend on seed and epoch alone, so that runs can be resumed and spread over processes exactly."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from spikezip.data import ResizedCrop, Shift, open_data
from spikezip.data.draws import carve, draw, order, uniforms
from spikezip.data.sources import InMemory
from spikezip.errors import DataError, InputError


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def bytes_(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "set.npz"
    np.savez(
        path, images=np.random.default_rng(0).integers(0, 256, (300, 8, 9), dtype=np.uint8), labels=np.arange(300) % 3
    )
    return open_data(path, mean=[0.4], std=[0.3])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90, 80 + i, 3), dtype=np.uint8)).save(path)
    return open_data(folder, image_size=72)


def _all(data, **choices):
    pairs = list(data.batches("train", 8, augment=True, **choices))
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


# ---- draws


def test_draws_are_splitmix64_and_stay_so():
    # The first outputs of the published generator from state 0 are mix(0 + gamma), mix(gamma + gamma), ...
    gamma = 0x9E3779B97F4A7C15
    states = np.array([0, gamma, 2 * gamma % 2**64], dtype=np.uint64)
    assert [hex(v) for v in draw(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_draws_are_even_and_independent_between_streams():
    keys = np.arange(20_000)
    one, two = uniforms(keys, 0, 1), uniforms(keys, 0, 2)
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03
    assert sorted(order(100, 3)) == list(range(100))
    assert (order(100, 3) != order(100, 4)).any()


def test_carving_takes_a_share_of_every_class_and_leaves_one():
    labels = np.repeat([0, 1, 2, 3], [1, 2, 30, 100])
    kept, held = carve(labels, 0.1, seed=0)
    assert np.bincount(labels[held], minlength=4).tolist() == [0, 1, 3, 10]
    assert sorted([*kept, *held]) == list(range(133))


# ---- batches


@pytest.mark.parametrize("name", ["digits", "bytes_", "photos"])
def test_seed_and_epoch_say_everything(name, request):
    data = request.getfixturevalue(name)
    images, labels = _all(data, seed=1, epoch=2)
    torch.manual_seed(99)
    again, again_labels = _all(data, seed=1, epoch=2)
    assert torch.equal(images, again)
    assert torch.equal(labels, again_labels)
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not torch.equal(_all(data, **other)[0], images)
    resumed, _ = _all(data, seed=1, epoch=2, start=2)
    assert torch.equal(resumed, images[16:])


@pytest.mark.parametrize("name", ["digits", "photos"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_union_over_ranks_is_the_batch_of_one_process(name, world_size, request):
    data = request.getfixturevalue(name)
    single = list(data.batches("train", 8, seed=5, epoch=1, augment=True))
    ranks = [
        list(data.batches("train", 8, seed=5, epoch=1, augment=True, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(single)} == {data.num_batches("train", 8)}
    for i, (images, labels) in enumerate(single):
        for r in range(world_size):
            assert torch.equal(ranks[r][i][0], images[r::world_size])
            assert torch.equal(ranks[r][i][1], labels[r::world_size])


def test_an_epoch_visits_every_image_once_and_the_last_batch_may_be_dropped(digits):
    batches = list(digits.batches("val", 50, seed=0))
    assert [len(labels) for _, labels in batches] == [50, 50, 43]
    images = torch.cat([images for images, _ in batches])
    plain, _ = digits.tensors("val")
    assert sorted(i.numpy().tobytes() for i in images) == sorted(i.numpy().tobytes() for i in plain)
    assert not torch.equal(images, plain)
    assert [len(y) for _, y in digits.batches("val", 50, drop_last=True)] == [50, 50]
    assert digits.num_batches("val", 50, drop_last=True) == 2
    in_order = torch.cat([images for images, _ in digits.batches("val", 50, shuffle=False)])
    assert torch.equal(in_order, plain)


@pytest.mark.parametrize(
    "choice", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}, {"world_size": 9}, {"start": -1}]
)
def test_sizes_that_do_not_fit_are_refused_at_the_call(digits, choice):
    with pytest.raises(InputError, match="world_size <= batch_size"):
        digits.batches("train", 8, **choice)


def test_calibration_images_are_training_images_by_seed(digits):
    some = digits.calibration(32, seed=1)
    assert some.shape == (32, 1, 8, 8)
    assert torch.equal(some, digits.calibration(32, seed=1))
    assert not torch.equal(some, digits.calibration(32, seed=2))
    train = {i.numpy().tobytes() for i in digits.tensors("train")[0]}
    assert len({i.numpy().tobytes() for i in some} & train) == 32
    with pytest.raises(DataError, match="has 1 to 1295 to give"):
        digits.calibration(1296)


# ---- augmentation


def test_a_shift_is_a_crop_of_the_padded_image_and_maybe_its_mirror():
    images = torch.arange(2 * 6 * 5, dtype=torch.uint8).reshape(1, 2, 6, 5).repeat(400, 1, 1, 1) + 1
    source = InMemory(lambda: images, torch.zeros(400, dtype=torch.int64))
    keys = draw(np.arange(400))
    out = Shift(padding=2, flip=True).batch(source, torch.arange(400), keys, (6, 5), torch.device("cpu"))
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2)).float() / 255
    possible = {}
    for y in range(5):
        for x in range(5):
            crop = padded[:, y : y + 6, x : x + 5]
            possible[crop.contiguous().numpy().tobytes()] = (y, x, 0)
            possible[crop.flip(-1).contiguous().numpy().tobytes()] = (y, x, 1)
    seen = [possible[image.contiguous().numpy().tobytes()] for image in out]
    assert len(set(seen)) == 50, "all 25 places, mirrored and not"
    assert 150 < sum(s[2] for s in seen) < 250


def test_resized_crops_are_parts_of_their_picture():
    # A picture whose red tells the column and green the row: a crop's values show where it was cut, and the mirror.
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    picture = torch.stack([columns, rows, torch.zeros(40, 60)])[None].repeat(200, 1, 1, 1)
    source = InMemory(lambda: picture, torch.zeros(200, dtype=torch.int64))
    out = ResizedCrop(0.2).batch(source, torch.arange(200), draw(np.arange(200)), (8, 8), torch.device("cpu"))
    assert out.shape == (200, 3, 8, 8)
    assert (out[:, 1, 1:] > out[:, 1, :-1]).all(), "rows are never turned over"
    rising = (out[:, 0, :, -1] > out[:, 0, :, 0]).all(1)
    assert 70 < int(rising.sum()) < 130
    heights = (out[:, 1, -1] - out[:, 1, 0])[:, 0]
    assert heights.min() < 0.5 < 0.7 < heights.max()


def test_datasets_give_the_same_images_as_tensors(digits, photos):
    for data in (digits, photos):
        images, labels = data.tensors("test")
        items = list(data.dataset("test"))
        assert torch.equal(torch.stack([image for image, _ in items]), images)
        assert [label for _, label in items] == labels.tolist()
        assert torch.equal(data.dataset("test")[-1][0], images[-1])


def test_augmented_datasets_follow_torchs_generator(digits, photos):
    for data in (digits, photos):
        part = data.dataset("train", augment=True)
        torch.manual_seed(0)
        one = torch.stack([part[i][0] for i in range(10)])
        torch.manual_seed(0)
        assert torch.equal(one, torch.stack([part[i][0] for i in range(10)]))
        assert one.shape[1:] == data.image_shape
        assert not torch.equal(one, torch.stack([data.dataset("train")[i][0] for i in range(10)]))
    assert isinstance(photos.augmentation, ResizedCrop)


def test_datasets_can_be_sent_to_worker_processes(digits):
    part = pickle.loads(pickle.dumps(digits.dataset("val", augment=True)))
    assert len(part) == 143
    loader = torch.utils.data.DataLoader(digits.dataset("val"), batch_size=100, num_workers=1)
    assert sum(len(labels) for _, labels in loader) == 143


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["digits", "bytes_"])
def test_batches_on_the_gpu_are_those_of_the_cpu(name, request):
    data = request.getfixturevalue(name)
    on_cpu, on_gpu = (data.batches("train", 64, augment=True, device=device) for device in ("cpu", "cuda"))
    for (a, x), (b, y) in zip(on_cpu, on_gpu, strict=True):
        assert b.is_cuda
        assert y.is_cuda
        assert torch.equal(a, b.cpu())
        assert torch.equal(x, y.cpu())


def test_the_default_device_changes_nothing():
    def read():
        data = open_data("digits")
        return [
            data.calibration(3),
            *data.tensors("test", 5),
            *next(data.batches("train", 4, augment=True)),
            data.dataset("test")[0][0],
        ]

    wanted = read()
    with torch.device("meta"):
        found = read()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
