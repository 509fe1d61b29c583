"""Finding models: names, users' files, weights, and every way in which they are wrong."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spikezip.errors import BundleError, CaptureError, DataError, UnknownNameError
from spikezip.models import import_timm, import_torchvision, libraries, load_weights, resolve


def _write(folder, code, name="mine.py"):
    path = folder / name
    path.write_text(textwrap.dedent(code))
    return path


# ---- names


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("resnet20", "Did you mean 'spikezip:resnet20'"),
        ("spikezip:resnt20", "Did you mean 'resnet20'"),
        ("timm:resnet118", "Did you mean 'resnet18'"),
        ("torchvision:vgg61", "vgg16"),
        ("torchvison:vgg16", "torchvision:NAME"),
        ("", "path/to/file.py:function"),
    ],
)
def test_unknown_names_tell_near_matches(spec, match):
    with pytest.raises(UnknownNameError, match=match):
        resolve(spec)


def test_torchvision_and_timm_models_say_what_images_they_take():
    found = resolve("torchvision:mobilenet_v3_small", num_classes=5)
    assert found.module(found.example).shape == (2, 5)
    assert found.example.shape == (2, 3, 224, 224)
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))
    assert not found.module.training
    found = resolve("timm:test_vit", num_classes=5, in_channels=1)
    assert found.module(found.example).shape == (2, 5)
    assert found.mean is None, "the statistics of three channels say nothing about one"


def test_torchvision_models_refuse_other_channels():
    with pytest.raises(CaptureError, match="timm:resnet18"):
        resolve("torchvision:resnet18", in_channels=1)


def test_example_shape_is_taken():
    assert resolve("spikezip:resnet20", example_shape=(3, 24, 24)).example.shape == (2, 3, 24, 24)


def test_a_size_that_a_library_model_does_not_take():
    with pytest.raises(
        CaptureError, match=r"timm:vit_tiny_patch16_224 does not take images of 3x32x32: .*made for 3x224x224"
    ):
        resolve("timm:vit_tiny_patch16_224", example_shape=(3, 32, 32))


@pytest.mark.parametrize("choice", [{"num_classes": 0}, {"in_channels": -1}, {"example_shape": (3, 0, 8)}])
def test_senseless_requests_are_refused(choice):
    with pytest.raises(CaptureError, match=next(iter(choice))):
        resolve("spikezip:digits", **choice)


def test_pretrained_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"cifar10_resnet20.safetensors.*SPIKEZIP_DATA"):
        resolve("spikezip:resnet20", weights=Path("pretrained"), root=tmp_path)
    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    with pytest.raises(DataError, match="SPIKEZIP_DATA is not set"):
        resolve("spikezip:resnet20", weights="pretrained")
    with pytest.raises(UnknownNameError, match="pretrained spikezip model 'vgg16'"):
        resolve("spikezip:vgg16", weights="pretrained")


def test_weights_for_other_classes_fit_with_a_new_classifier(tmp_path):
    torch.manual_seed(0)
    trained = resolve("spikezip:digits").module
    path = tmp_path / "digits.safetensors"
    save_file(trained.state_dict(), path)
    with pytest.raises(BundleError, match="do not fit"):
        resolve("spikezip:digits", num_classes=7, weights=path)
    found = resolve("spikezip:digits", num_classes=7, weights=path, new_classifier=True)
    assert found.module(found.example).shape == (2, 7)
    assert found.new_classifier and not resolve("spikezip:digits", weights=path, new_classifier=True).new_classifier
    other = [name for name, p in trained.named_parameters() if not torch.equal(p, found.module.get_parameter(name))]
    assert other == ["linear.weight", "linear.bias"]


def test_a_new_classifier_hides_no_other_misfit(tmp_path):
    path = tmp_path / "digits.safetensors"
    save_file(resolve("spikezip:digits", in_channels=3).module.state_dict(), path)
    with pytest.raises(BundleError, match="1 of another shape"):
        resolve("spikezip:digits", num_classes=7, weights=path, new_classifier=True)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(import_torchvision("models._api"), "load_state_dict_from_url", offline)
    with pytest.raises(DataError, match=r"torchvision:resnet18 could not be fetched: OSError: no route.*weights="):
        resolve("torchvision:resnet18", weights="pretrained")
    monkeypatch.setattr(import_timm(), "create_model", offline)
    with pytest.raises(DataError, match=r"timm:resnet18 could not be fetched"):
        libraries.timm_model("resnet18", None, None, pretrained=True)


# ---- users' files


def test_a_function_may_return_a_module_or_a_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = _write(
        tmp_path,
        """
        from __future__ import annotations
        from dataclasses import dataclass
        import torch
        from neighbour import WIDTH

        @dataclass
        class Config:
            width: int = WIDTH

        def alone():
            return torch.nn.Linear(Config().width, 2)

        def pair():
            return alone(), torch.ones(3, 4)

        def two_inputs():
            return torch.nn.Bilinear(4, 4, 2), [torch.ones(3, 4), torch.ones(3, 4)]

        class Late(torch.nn.Module):
            def forward(self, x):
                from second_neighbour import twice
                return twice(x)

        def late():
            from third_neighbour import WIDTH
            return Late(), torch.ones(3, WIDTH)
        """,
    )
    _write(tmp_path, "WIDTH = 4", "neighbour.py")
    _write(tmp_path, "def twice(x): return 2 * x", "second_neighbour.py")
    _write(tmp_path, "WIDTH = 5", "third_neighbour.py")
    found = resolve(f"{path}:pair")
    assert found.module(found.example).shape == (3, 2)
    assert resolve(f"{path}:alone", example_shape=(4,)).example.shape == (2, 4)
    found = resolve(f"{path}:two_inputs")
    assert isinstance(found.example, tuple)
    assert found.module(*found.example).shape == (3, 2)
    found = resolve(f"{path}:late")
    assert found.module(found.example).sum() == 30
    with pytest.raises(CaptureError, match=r"Return \(model, example_input\).*--shape C,H,W"):
        resolve(f"{path}:alone")
    with pytest.raises(CaptureError, match="takes no arguments"):
        resolve(f"{path}:pair", num_classes=3)
    with pytest.raises(CaptureError, match="pretrained"):
        resolve(f"{path}:pair", weights="pretrained")
    with pytest.raises(UnknownNameError, match="Did you mean 'pair'"):
        resolve(f"{path}:pear")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("def model(): raise KeyError('who knows')", "failed with KeyError: 'who knows'"),
        ("def model(): raise SystemExit('stop here')", "SystemExit: stop here"),
        ("def model(width): return None", "missing 1 required positional argument: 'width'"),
        ("def model(): return 3", "returned int; return a torch.nn.Module"),
        ("import torch\ndef model(): return torch.nn.ReLU(), 3", "returned int as the example input"),
        ("def model(:", r"SyntaxError.*line 1"),
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    ],
)
def test_what_goes_wrong_in_a_users_file_is_told_in_its_own_words(tmp_path, code, match):
    path = _write(tmp_path, code)
    with pytest.raises(CaptureError, match=match):
        resolve(f"{path}:model")


@pytest.mark.parametrize(("spec", "match"), [("nowhere.py:model", "no file nowhere.py"), ("a.py", "a.py:FUNCTION")])
def test_missing_files_and_functions(spec, match):
    with pytest.raises(CaptureError, match=match):
        resolve(spec)


# ---- weights


def _network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_weights_come_back_bit_for_bit(tmp_path):
    trained = _network()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    fresh = _network()
    load_weights(fresh, tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def test_weights_through_resolve(tmp_path):
    trained = resolve("spikezip:digits").module
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    found = resolve("spikezip:digits", weights=tmp_path / "w.safetensors")
    assert torch.equal(found.module(found.example), trained(found.example))


def test_tied_weights_are_stored_once(tmp_path):
    def tied():
        module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        module[1].weight = module[0].weight
        return module

    save_file({"0.weight": torch.ones(3, 3)}, tmp_path / "w.safetensors")
    module = tied()
    load_weights(module, tmp_path / "w.safetensors")
    assert module[1].weight.eq(1).all()


def _without(state):
    del state["0.bias"]


def _extra(state):
    state["stranger"] = torch.ones(2)


def _reshaped(state):
    state["0.weight"] = torch.ones(2, 1, 5, 5)


def _integers(state):
    state["0.weight"] = torch.ones(2, 1, 3, 3, dtype=torch.int8)


def _nan(state):
    state["1.running_var"][0] = float("nan")


def _infinite(state):
    state["0.weight"].view(-1)[3] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_without, "1 missing from the file: 0.bias"),
        (_extra, "1 unknown to the model: stranger"),
        (_reshaped, r"0.weight \(float32 \[2, 1, 5, 5\] in the file, float32 \[2, 1, 3, 3\] in the model\)"),
        (_integers, r"0.weight \(int8"),
        (_nan, "NaN or infinity in 1.running_var"),
        (_infinite, "NaN or infinity in 0.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, spoil, match):
    module = _network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {name: tensor.clone() + 1 for name, tensor in before.items()}
    spoil(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=match):
        load_weights(module, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_pickles_are_refused_unread(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    import pickle

    for suffix in (".pt", ".pth", ".PTH", ".ckpt", ".bin"):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(BundleError, match=r"pickle.*safetensors.torch.save_file"):
            load_weights(_network(), path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}"])
def test_corrupt_files_are_reported(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as safetensors"):
        load_weights(_network(), path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(BundleError, match="There is no file"):
        load_weights(_network(), tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=r"does not end in \.safetensors"):
        load_weights(_network(), tmp_path / "w.h5")


# ---- importing


def test_importing_models_and_data_stays_light():
    code = (
        "import sys, spikezip.models, spikezip.data;"
        "print([m for m in ('torchvision', 'timm', 'sklearn', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_torchvision_and_timm_import_in_a_fresh_process_without_a_warning():
    code = (
        "from spikezip.models.torchvision_ops import import_timm, import_torchvision; import_timm();"
        "import timm, torchvision; import_timm(); import_torchvision('transforms.v2'); print('fine')"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout.strip(), out.stderr) == ("fine", "")


def test_weights_say_how_their_pixels_were_normalised(tmp_path):
    state = resolve("spikezip:digits").module.state_dict()
    assert resolve("spikezip:digits").mean is None
    said = {"pixels": json.dumps({"mean": [0.25], "std": [0.5]})}
    save_file(state, tmp_path / "a.safetensors", said)
    found = resolve("spikezip:digits", weights=tmp_path / "a.safetensors")
    assert (found.mean, found.std) == ((0.25,), (0.5,))
    other = resolve("spikezip:digits", weights=tmp_path / "a.safetensors", num_classes=7, new_classifier=True)
    assert other.mean is None, "other data have statistics of their own"
    for wrong in ("no JSON", "[0.25]", '{"mean": [0.25]}', '{"mean": 1, "std": [1]}'):
        save_file(state, tmp_path / "b.safetensors", {"pixels": wrong})
        with pytest.raises(BundleError, match=r"b\.safetensors says of its pixels .*no mean and std"):
            resolve("spikezip:digits", weights=tmp_path / "b.safetensors")
