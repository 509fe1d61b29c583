"""Results are complete or not there at all, and refused before long work begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spikezip.cli.target import output_file, output_folder
from spikezip.errors import OutputError
from spikezip.measure.saving import replacing


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "deep" / "x.json"
    with output_file(target) as draft:
        draft.write_text("1")
        assert not target.exists()
    assert target.read_text() == "1"
    assert listed(tmp_path) == ["new", "new/deep", "new/deep/x.json"]


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(path: Path) -> None:
        with output_file(path, overwrite=True) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    for path in (target, tmp_path / "new" / "x.json"):
        with pytest.raises(KeyboardInterrupt):
            fail(path)
    assert target.read_text() == "old"
    assert listed(tmp_path) == ["x.json"]


def test_the_file_can_be_read_by_others_as_open_would_have_made_it(tmp_path):
    with output_file(tmp_path / "x.json") as draft:
        draft.write_text("1")
    (tmp_path / "plain").write_text("1")
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_refused_before_the_work(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(OutputError, match=r"x\.json' exists\. .*--overwrite"), output_file(target):
        pytest.fail("the work began")
    assert target.read_text() == "old"


def test_what_appears_during_the_work_is_kept(tmp_path):
    def write(target: Path, make, name: str) -> None:
        with make(target) as draft:
            (draft / name).write_text("later")
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text("earlier")

    for make, name in ((output_file, ""), (output_folder, "y.json")):
        target = tmp_path / make.__name__
        with pytest.raises(OutputError, match="--overwrite"):
            write(target, make, name)
        assert (target / name).read_text() == "earlier"


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a folder"), output_file(tmp_path):
        pytest.fail("the work began")
    with pytest.raises(OutputError, match="is a file"), output_folder(tmp_path / "file"):
        pytest.fail("the work began")
    with pytest.raises(OutputError, match=r"cannot be made: .*file' is a file"), output_file(tmp_path / "file" / "x"):
        pytest.fail("the work began")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a pipe or a device"), output_file(tmp_path / "pipe", overwrite=True):
        pytest.fail("the work began")
    with pytest.raises(OutputError, match="is no regular file"), replacing(tmp_path / "pipe"):
        pytest.fail("the work began")
    assert (tmp_path / "pipe").is_fifo()
    assert listed(tmp_path) == ["pipe"]


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with output_folder(target) as draft:
        (draft / "a").write_text("a")
        (draft / "sub").mkdir()
        (draft / "sub" / "b").write_text("b")
        assert not (target / "a").exists()
    assert listed(tmp_path) == ["out", "out/a", "out/sub", "out/sub/b"]


def test_overwriting_a_folder_keeps_what_is_not_ours(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "record.json").write_text("old")
    with output_folder(tmp_path, overwrite=True) as draft:
        (draft / "record.json").write_text("new")
    assert (tmp_path / "record.json").read_text() == "new"
    assert listed(tmp_path) == ["record.json", "thesis.tex"]


def test_a_folder_with_something_in_it_is_refused_before_the_work(tmp_path):
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(OutputError, match="is not empty"), output_folder(tmp_path):
        pytest.fail("the work began")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    if os.geteuid() == 0:
        place = Path("/proc/spikezip-out")  # root may write anywhere but here
    else:
        tmp_path.chmod(0o500)
        place = tmp_path / "out"
    for make in (output_file, output_folder):
        with pytest.raises(OutputError, match=r"cannot be written: .* Give an --out"), make(place):
            pytest.fail("the work began")


@pytest.mark.parametrize("place", [output_file, output_folder])
def test_where_the_disk_is_full_the_target_is_named(place, tmp_path):
    target = tmp_path / "out.spikezip"

    def fill() -> None:
        with place(target) as draft, replacing(draft / "a" if draft.is_dir() else draft):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left") as refusal:
        fill()
    assert f"'{target}" in str(refusal.value)
    assert ".spikezip-" not in str(refusal.value)
