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
