"""Data sets: what is read is what was stored, splits are fixed and apart, and malformed files are told."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from spikezip.data import cifar as cifar_module
from spikezip.data import data_root as find_root
from spikezip.data import open_data
from spikezip.errors import DataError, InputError, UnknownNameError
from spikezip.models import import_torchvision


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def _keys(images):
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images}


# ---- digits


def test_digits_are_scikit_learns_in_unit_range():
    from sklearn.datasets import load_digits

    data = open_data("digits")
    images, labels = data.tensors("trainval")
    more, more_labels = data.tensors("test")
    both = torch.cat([images, more])
    assert both.shape == (1797, 1, 8, 8)
    assert both.dtype == torch.float32
    assert (both.min(), both.max()) == (0, 1)
    pixels, classes = load_digits(return_X_y=True)
    assert _keys(both) == _keys(torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8))
    assert torch.bincount(torch.cat([labels, more_labels])).tolist() == np.bincount(classes).tolist()


def test_splits_are_apart_fixed_and_stratified():
    data = open_data("digits")
    parts = {split: _keys(data.tensors(split)[0]) for split in ("train", "val", "test")}
    assert not parts["train"] & parts["val"]
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & parts["test"]
    assert parts["train"] | parts["val"] == _keys(data.tensors("trainval")[0])
    assert torch.bincount(data.labels("test")).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    # Fixed for good: results are compared across versions.
    assert data.labels("test")[:12].tolist() == open_data("digits").labels("test")[:12].tolist()
    assert hashlib.sha256(data.labels("test").numpy().tobytes()).hexdigest()[:8] == "79f1de62"


def test_normalisation_and_size_may_be_chosen():
    plain = open_data("digits").tensors("test", 5)[0]
    scaled = open_data("digits", mean=[0.5], std=[0.25]).tensors("test", 5)[0]
    assert torch.allclose(scaled, (plain - 0.5) / 0.25)
    larger = open_data("digits", image_size=16)
    assert larger.image_shape == (1, 16, 16)
    assert larger.tensors("test", 5)[0].shape == (5, 1, 16, 16)
    with pytest.raises(DataError, match="1 channels"):
        open_data("digits", mean=[0.5, 0.5, 0.5])
    with pytest.raises(DataError, match="divides by zero"):
        open_data("digits", std=[0.0])
    with pytest.raises(DataError, match="image_size=0"):
        open_data("digits", image_size=0)


# ---- names


@pytest.mark.parametrize(
    ("name", "match"), [("cifar11", "Did you mean 'cifar10'"), ("digit", "digits"), ("", "no data set.*Known")]
)
def test_unknown_names(name, match, tmp_path, monkeypatch):
    monkeypatch.chdir(_images(tmp_path, 5))  # "" is not this folder
    with pytest.raises(UnknownNameError, match=match):
        open_data(name)


def test_missing_paths_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match="There is no file or folder"):
        open_data(tmp_path / "none.npz")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"Give an \.npz file"):
        open_data(tmp_path / "data.csv")
    with pytest.raises(UnknownNameError, match=r"split of digits 'tets'.*'test'"):
        open_data("digits").tensors("tets")
    with pytest.raises(InputError, match="limit=0"):
        open_data("digits").tensors("test", 0)


# ---- CIFAR


def test_cifar10_is_as_published(data_root):
    data = open_data("cifar10", root=data_root)
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    assert {s: data.count(s) for s in data.sources} == {
        "train": 45_000,
        "val": 5_000,
        "trainval": 50_000,
        "test": 10_000,
    }
    assert torch.bincount(data.labels("val")).tolist() == [500] * 10
    images, labels = data.tensors("test", limit=2000)
    assert images.shape == (2000, 3, 32, 32)
    assert torch.bincount(labels).min() > 150
    # Standardised with the training statistics, test images are near mean 0, deviation 1.
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05
    raw = open_data("cifar10", root=data_root, mean=[0] * 3, std=[1] * 3, image_size=64)
    assert raw.tensors("test", 3)[0].shape == (3, 3, 64, 64)


def test_cifar100_is_read(data_root):
    data = open_data("cifar100", root=data_root)
    assert data.num_classes == 100
    assert torch.bincount(data.labels("trainval")).tolist() == [500] * 100
    assert torch.bincount(data.labels("val")).tolist() == [50] * 100
    assert data.tensors("test", 10)[0].shape == (10, 3, 32, 32)


def _packed(folder, name, images, labels, grid=4):
    """Write the packed format, as the reader's counterpart."""
    import io

    raw, offsets = b"", [0]
    for i in range(0, len(images), grid * grid):
        tiles = np.zeros((grid * grid, 32, 32, 3), np.uint8)
        tiles[: len(images[i : i + grid * grid])] = images[i : i + grid * grid]
        sprite = tiles.reshape(grid, grid, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(grid * 32, grid * 32, 3)
        buffer = io.BytesIO()
        Image.fromarray(sprite).save(buffer, "WEBP", lossless=True)
        raw += buffer.getvalue()
        offsets.append(len(raw))
    np.savez(
        folder / name,
        webp=np.frombuffer(raw, np.uint8),
        offsets=np.array(offsets),
        count=len(images),
        grid=grid,
        labels=labels,
    )


@pytest.fixture
def small_cifar(tmp_path, rng):
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    _packed(tmp_path, "cifar10_train_0.npz", images[:20], labels[:20])
    _packed(tmp_path, "cifar10_train_1.npz", images[20:40], labels[20:40])
    _packed(tmp_path, "cifar10_test.npz", images[40:], labels[40:])
    return tmp_path, images, labels


def test_packed_images_come_back_bit_for_bit(small_cifar, monkeypatch):
    folder, images, labels = small_cifar
    monkeypatch.setenv("SPIKEZIP_DATA", str(folder))
    assert find_root() == folder
    data = open_data("cifar10", mean=[0] * 3, std=[1] * 3)
    for split, expected in (("trainval", slice(0, 40)), ("test", slice(40, 60))):
        read, read_labels = data.tensors(split)
        assert torch.equal((read * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(images[expected]))
        assert read_labels.tolist() == labels[expected].tolist()


def test_packed_files_that_are_wrong(small_cifar):
    folder, images, _ = small_cifar
    _packed(folder, "cifar10_test.npz", images[:20], np.full(20, 11, np.uint8))
    with pytest.raises(DataError, match=r"cifar10_test\.npz: label 11 of image 0 is not in 0\.\.9"):
        open_data("cifar10", root=folder)
    stored = dict(np.load(folder / "cifar10_train_0.npz"))
    stored["webp"] = stored["webp"][:500]
    np.savez(folder / "cifar10_train_0.npz", **stored)
    _packed(folder, "cifar10_test.npz", images[:20], np.zeros(20, np.uint8))
    with pytest.raises(DataError, match=r"cifar10_train_0\.npz cannot be read"):
        open_data("cifar10", root=folder).tensors("train")
    (folder / "cifar10_test.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match=r"cifar10_test\.npz cannot be read"):
        open_data("cifar10", root=folder)
    (folder / "cifar10_test.npz").unlink()
    with pytest.raises(DataError, match="only some of"):
        open_data("cifar10", root=folder)


def test_cifar_that_is_nowhere(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(import_torchvision("datasets.cifar"), "download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"could not be downloaded: OSError: no route to host.*SPIKEZIP_DATA"):
        open_data("cifar10", root=tmp_path)
    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    monkeypatch.setenv("SPIKEZIP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="cache"):
        open_data("cifar100")
    with pytest.raises(DataError, match="There is no folder"):
        open_data("cifar10", root=tmp_path / "typo")


def test_cifar_as_torchvision_has_it(tmp_path, monkeypatch, rng):
    class Downloaded:
        classes = tuple("abcdefghij")
        url = "https://example.org"

        def __init__(self, root, train, download):
            self.data = images[:40] if train else images[40:]
            self.targets = [i % 10 for i in range(len(self.data))]

    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(import_torchvision("datasets"), "CIFAR10", Downloaded)
    data = open_data("cifar10", root=tmp_path, mean=[0] * 3, std=[1] * 3)
    assert data.class_names == Downloaded.classes
    read = (data.tensors("test")[0] * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(read, torch.from_numpy(images[40:]))
    assert cifar_module._STATISTICS[10][0] == open_data("cifar10", root=tmp_path).mean


# ---- arrays


def _arrays(**changes):
    rng = np.random.default_rng(1)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 12, 10, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (8, 12, 10, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def _save(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def test_arrays_channels_last_first_or_none(tmp_path):
    stored = _arrays()
    last = open_data(_save(tmp_path, **stored))
    assert (last.image_shape, last.num_classes, last.count("trainval")) == ((3, 12, 10), 4, 40)
    images, labels = last.tensors("test")
    assert torch.equal((images * 255).round().byte(), torch.from_numpy(stored["x_test"]).permute(0, 3, 1, 2))
    assert labels.tolist() == stored["y_test"].tolist()
    first = {k: v.transpose(0, 3, 1, 2) if k[0] == "x" else v for k, v in stored.items()}
    assert torch.equal(open_data(_save(tmp_path, **first)).tensors("test")[0], images)
    grey = {k: v[..., 0] if k[0] == "x" else v[:, None] for k, v in stored.items()}
    assert torch.equal(open_data(_save(tmp_path, **grey)).tensors("test")[0], images[:, :1])
    floats = {k: v.astype(np.float64) / 255 if k[0] == "x" else v for k, v in stored.items()}
    assert torch.allclose(open_data(_save(tmp_path, **floats)).tensors("test")[0], images)


def test_arrays_in_one_piece_with_names(tmp_path):
    stored = _arrays()
    path = _save(tmp_path, images=stored["x_train"], labels=stored["y_train"], classes=np.array(list("abcd")))
    data = open_data(path)
    assert data.class_names == ("a", "b", "c", "d")
    assert (data.count("train"), data.count("val"), data.count("test")) == (28, 4, 8)


_IMAGES = np.zeros((40, 12, 10, 3), np.float32)


def _spoilt(value):
    images = _IMAGES.copy()
    images[7, 1, 2, 0] = value
    return images


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x_train": _spoilt(np.nan)}, "x_train holds NaN or infinity in 1 images, first in image 7"),
        ({"x_train": _spoilt(np.inf)}, "x_train holds NaN"),
        ({"x_train": _spoilt(0).astype(np.float64) + 1e300}, "x_train holds NaN or infinity in 40 images"),
        ({"x_test": np.zeros((0, 12, 10, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test has no images"),
        ({"x_train": np.zeros((40, 30), np.uint8)}, r"x_train has shape \[40, 30\]"),
        ({"x_train": np.zeros((40, 12, 10, 3), np.int32)}, "x_train is int32; store uint8"),
        ({"x_train": np.zeros((40, 3, 3, 3), np.uint8)}, "no axis is the shortest"),
        ({"x_test": np.zeros((8, 9, 9, 3), np.uint8)}, r"x_test has images \[3, 9, 9\]"),
        ({"y_train": np.arange(39) % 4}, "39 labels for 40 images"),
        ({"y_train": np.arange(40) % 4 - 1}, "label -1 of image 0 is not in 0 or more"),
        ({"y_test": np.arange(8)}, r"y_test: label 4 of image 4 is not in 0\.\.3"),
        ({"y_train": np.arange(40) * 10**9}, "y_train goes up to 39000000000 for 40 images"),
        ({"y_train": np.full(40, 2**64 - 1, np.uint64)}, f"label {2**64 - 1} of image 0 is not in 0 or more"),
        ({"y_test": np.full(8, 2**63 + 1, np.uint64)}, r"of image 0 is not in 0\.\.3"),
        ({"classes": np.array("abcd")}, r"classes has shape \[\]; store one name a class"),
        ({"y_train": np.arange(40) / 2}, "store one whole number an image"),
        ({"y_train": np.eye(4)[np.arange(40) % 4].astype(int)}, "one-hot"),
        ({"y_train": np.array([object()] * 40)}, "not objects"),
        ({"y_test": None}, r"it needs the arrays x_train"),
    ],
)
def test_arrays_that_are_wrong(tmp_path, changes, match):
    path = _save(tmp_path, **_arrays(**changes))
    with pytest.raises(DataError, match=match) as told:
        open_data(path)
    assert str(path) in str(told.value)


def test_files_that_are_no_arrays(tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        open_data(path)
    path.write_bytes(b"PK\x03\x04" + b"x" * 50)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(path)
    with zipfile.ZipFile(path, "w") as file:
        for name in _arrays():
            file.writestr(name, b"no array")
    with pytest.raises(DataError, match="x_train is no array"):
        open_data(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="several arrays"):
        open_data(path)


# ---- folders


def _images(folder, count, size=(10, 12), mode="RGB", classes=("cat", "dog"), seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i:03}.png")
    return folder


def test_a_folder_of_classes_is_split_for_good(tmp_path):
    _images(tmp_path, 20)
    data = open_data(tmp_path, mean=[0] * 3, std=[1] * 3)
    assert (data.class_names, data.image_shape) == (("cat", "dog"), (3, 10, 12))
    assert [data.count(s) for s in ("train", "val", "test")] == [28, 4, 8]
    images, labels = data.tensors("test")
    assert torch.bincount(labels).tolist() == [4, 4]
    stored = {
        np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes(): data.class_names.index(p.parent.name)
        for p in tmp_path.rglob("*.png")
    }
    for image, label in zip((images * 255).round().byte().numpy(), labels.tolist(), strict=True):
        assert stored[image.tobytes()] == label
    copy = tmp_path.parent / f"{tmp_path.name}_copy"
    shutil.copytree(tmp_path, copy)
    assert torch.equal(open_data(copy, mean=[0] * 3, std=[1] * 3).tensors("test")[0], images)


def test_folders_of_splits(tmp_path):
    for split, count in (("train", 10), ("val", 3)):
        _images(tmp_path / split, count)
    assert [open_data(tmp_path).count(s) for s in ("train", "val", "test")] == [18, 2, 6]
    _images(tmp_path / "test", 5)
    data = open_data(tmp_path)
    assert [data.count(s) for s in ("train", "val", "test")] == [20, 6, 10]
    assert torch.bincount(data.labels("test")[:6]).min() >= 1, "files come mixed, not class by class"


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "valid", "testing"),
        ("TRAIN", "Validation", "Test"),
        ("train_images", "Val-Set", "images test"),
    ],
)
def test_splits_by_other_names(tmp_path, train, val, test):
    for split, count in ((train, 10), (val, 3), (test, 5)):
        _images(tmp_path / split, count)
    assert [open_data(tmp_path).count(s) for s in ("train", "val", "test")] == [20, 6, 10]


def test_classes_whose_names_hold_that_of_a_split(tmp_path):
    for name in ("freight_train", "test tube", "data"):
        _images(tmp_path / name / "shot", 5)
    assert open_data(tmp_path).class_names == ("data", "freight_train", "test tube")


@pytest.mark.parametrize(
    ("folders", "match"),
    [
        (("val", "test"), r"has test/ and val/; it needs one train/"),
        (("train", "val", "valid"), r"has train/ and val/ and valid/; it needs one train/"),
        (("train_images", "test", "test_images"), r"has test/ and test_images/ and train_images/; it needs one train/"),
        (("data",), r"holds one folder, data/, and 2 classes or more are needed"),
    ],
)
def test_layouts_that_would_be_another_problem(tmp_path, folders, match):
    for name in folders:
        _images(tmp_path / name, 5)
    with pytest.raises(DataError, match=match):
        open_data(tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path):
    for split in ("train", "test"):
        _images(tmp_path / split, 5)
    for path in (tmp_path / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"dog holds no images \(.*\) to train on"):
        open_data(tmp_path)


def test_hidden_files_are_no_images(tmp_path):
    _images(tmp_path, 20)
    _images(tmp_path / "cat", 1, classes=(".ipynb_checkpoints",))
    (tmp_path / "cat" / "._000.png").write_bytes(b"attributes")
    data = open_data(tmp_path)
    assert data.count("trainval") + data.count("test") == 40
    data.tensors("trainval")


def test_images_of_several_sizes_need_an_image_size(tmp_path):
    _images(tmp_path, 6)
    _images(tmp_path, 3, size=(30, 20))
    with pytest.raises(DataError, match="Give image_size="):
        open_data(tmp_path).tensors("trainval")
    data = open_data(tmp_path, image_size=8)
    assert data.tensors("trainval")[0].shape[1:] == (3, 8, 8)


def test_grey_images_have_one_channel(tmp_path):
    data = open_data(_images(tmp_path, 6, mode="L"))
    assert (data.image_shape, data.mean, data.std) == ((1, 10, 12), (0.0,), (1.0,))
    assert data.tensors("test")[0].shape[1] == 1


def test_one_colour_image_among_grey_ones_makes_three_channels(tmp_path):
    _images(tmp_path, 20, mode="L")
    for name in ("cat", "dog"):  # each in turn: whichever is looked at first, one of them comes later
        _images(tmp_path, 1, mode="RGB", classes=(name,))
        assert open_data(tmp_path).image_shape[0] == 3
        _images(tmp_path, 1, mode="L", classes=(name,))
    assert open_data(tmp_path).image_shape[0] == 1


@pytest.mark.parametrize("size", [(10, 12), (70, 80)])
@pytest.mark.parametrize(("mode", "mirrored"), [("L", False), ("RGB", True)])
def test_only_colour_images_are_mirrored(tmp_path, size, mode, mirrored):
    data = open_data(_images(tmp_path, 6, size=size, mode=mode))
    assert data.augmentation.flip == mirrored


@pytest.mark.parametrize("form", ["<u2", ">u2"])
def test_grey_images_of_16_bits_are_scaled(tmp_path, form):
    pixels = np.linspace(0, 65535, 120).astype(form).reshape(10, 12)
    for path in _images(tmp_path, 6).rglob("*.png"):
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".tif"))
    images, _ = open_data(tmp_path).tensors("test")
    assert images.shape[1] == 1
    assert (images - torch.from_numpy(pixels / 65535)).abs().max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("form", [np.float32, np.int32])
def test_images_of_32_bits_are_refused(tmp_path, form):
    for path in _images(tmp_path, 6).rglob("*.png"):
        path.unlink()
        Image.fromarray(np.ones((10, 12), form)).save(path.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"\.tif has grey values of 32 bits.*\.npz"):
        open_data(tmp_path)


def test_an_image_too_large_to_be_meant_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="cannot be read as an image: Image size"):
        open_data(_images(tmp_path, 5))


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match="holds no folders"):
        open_data(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"cat holds no images \(.*\) to train on"):
        open_data(tmp_path)
    _images(tmp_path / "a" / "train", 4)
    with pytest.raises(DataError, match=r"has train/; it needs one train/, and val/ or test/"):
        open_data(tmp_path / "a")
    _images(tmp_path / "a" / "test", 4, classes=("cat", "emu"))
    with pytest.raises(DataError, match=r"the class 'emu', which the training images lack"):
        open_data(tmp_path / "a")
    for path in _images(tmp_path / "b", 5).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        open_data(tmp_path / "b")
