"""``spikezip bench``: what it writes, and what it refuses before any work."""

from __future__ import annotations

import json


def test_bench_writes_record_and_figure(spikezip, model_file, tmp_path):
    out = tmp_path / "bench"
    options = ["--shape", "1,8,8", "--steps", "2,4", "--levels", "4,6", "--batch", "3,1", "--active", "0.5,0.2"]
    call = ["bench", f"{model_file}:build", *options, "--rounds", 1, "--out", out]
    done = spikezip(*call)
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["speed.json", "speed.png", "speed.svg"]
    record = json.loads((out / "speed.json").read_text())
    assert record["format"] == "spikezip.speed/2"
    assert [s["axis"] for s in record["settings"]] == ["base", "levels", "batch", "active"]
    assert "sweep" in done.stdout
    assert "ANN forwards" in done.stdout
    again = spikezip(*call)
    assert again.exit_code == 2
    assert "not empty" in again.stderr


def test_bench_refuses(spikezip, tmp_path, model_file):
    def refused(*args) -> str:
        done = spikezip("bench", *args, "--out", tmp_path / "never")
        assert done.exit_code == 2
        assert not (tmp_path / "never").exists()
        return done.stderr

    assert "--steps '8,x': give numbers above 0" in refused("spikezip:resnet20", "--steps", "8,x")
    assert "--batch '0'" in refused("spikezip:resnet20", "--batch", "0")
    assert "shares lie between 0 and 1" in refused("spikezip:resnet20", "--active", "1.5")
    assert "no contender 'warp'" in refused("spikezip:resnet20", "--engines", "warp")
    assert "--width changes spikezip:resnet18" in refused("spikezip:digits", "--width", "2")
    assert "--width 'inf'" in refused("spikezip:resnet18", "--width", "inf")
    assert "needs one at least" in refused("spikezip:resnet18", "--width", "0.001")
    weights = ("spikezip:resnet18", "--weights", "mine.safetensors")
    assert "--active sets what random weights have" in refused(*weights, "--active", "0.2")
    assert "--weights are those of one width" in refused(*weights, "--width", "1,0.5")
    several = ("--batch", "2,1", "--engines", "reference")
    assert "Several values of batch are timed with the fast engines alone" in refused("spikezip:digits", *several)


def test_bench_leaves_out_what_has_no_rule(spikezip, tmp_path):
    file = tmp_path / "smooth.py"
    file.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    options = ["--shape", "1,8,8", "--steps", "2", "--levels", "4", "--batch", "2", "--rounds", 1]
    done = spikezip("bench", f"{file}:build", *options, "--out", tmp_path / "all")
    assert done.exit_code == 0, done.stderr
    assert "Not timed, as they have no rule for an operation" in done.stderr
    assert "plain loop" in done.stderr
    (setting,) = json.loads((tmp_path / "all" / "speed.json").read_text())["settings"]
    assert "sweep" in {row["engine"] for row in setting["rows"]}
    assert setting["active"] is None  # there is no BatchNorm to set it by
    done = spikezip("bench", f"{file}:build", *options, "--engines", "plain loop", "--out", tmp_path / "one")
    assert done.exit_code == 2
    assert "(gelu) is not linear" in done.stderr
    done = spikezip("bench", f"{file}:build", *options, "--active", "0.5,0.2", "--out", tmp_path / "shares")
    assert done.exit_code == 2
    assert "of which this network has none" in done.stderr
