"""The recorded Glow on MNIST: made by the code as it is now, and its weights score what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from book.recordings import coupling_flows_mnist as recording
from book.recordings.origin import fingerprint
from pkg.data import mnist

FILE = recording.HERE / "coupling_flows_mnist.json"
RECORD = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def flow():
    torch.set_num_threads(1)
    return recording.stored_model()


def test_the_record_was_made_by_this_code():
    assert RECORD["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded flow has changed: run "
        "`python -m book.recordings.coupling_flows_mnist --confirm` if its results are the same, "
        f"or `{RECORD['command']}`, then refresh the chapter"
    )


def test_every_class_of_the_flow_is_in_the_fingerprint(flow):
    """A layer that nobody listed could change without the record noticing."""
    listed = {name for names in recording.CODE.values() for name in names}
    ours = [c for m in flow.modules() for c in type(m).__mro__ if c.__module__.startswith("pkg.")]
    used = {cls.__name__ for cls in ours}
    assert not used - listed
    assert used >= {"Glow", "AffineCoupling", "ActNorm", "Invertible1x1Conv", "Logit", "MultiScale"}


def test_the_stored_weights_score_what_is_recorded(flow):
    """On a part of each set: their means lie within five standard errors of the recorded mean."""
    test = recording.counts_of(mnist("test"))
    for name, counts in (("test", test), ("inverted", 255 - test)):
        told = RECORD["scores"][name]
        found = recording.bits(flow, counts[:200])
        spread = told["error"] * (told["pictures"] / 200) ** 0.5
        assert abs(float(found.mean()) - told["bits"]) < 5 * spread, name


def test_the_scores_are_what_the_chapter_says():
    scores = {name: told["bits"] for name, told in RECORD["scores"].items()}
    assert RECORD["scores"]["test"]["pictures"] == 10_000
    # Uniform pixels cost 8 bits. No published flow is below 0.9; a number there would be a mistake.
    assert 0.9 < scores["test"] < 2.0
    assert abs(scores["test"] - scores["train"]) < 0.1
    assert scores["shuffled pixels"] > scores["test"] + 1
    assert scores["inverted"] > scores["test"] + 1
    # The well-known failure: nothing but background is more likely than any digit.
    assert scores["black"] < scores["test"]
    curve = RECORD["curve"]["bits"]
    assert curve[-1] < curve[0] - 1
    assert RECORD["training"]["steps"] >= 1000


def test_the_stored_samples_are_those_of_the_weights(flow):
    with np.load(recording.HERE / "coupling_flows_mnist.npz") as stored:
        for place, temperature in enumerate(recording.TEMPERATURES):
            kept = stored[f"samples/{temperature}"]
            assert kept.shape == (recording.SAMPLES, 28, 28)
            assert kept.dtype == np.uint8
            drawn = torch.Generator().manual_seed(10 + place)
            x = flow.sample(recording.SAMPLES, temperature=temperature, generator=drawn)
            again = (256 * x).floor().clamp(0, 255).squeeze(1).numpy()
            # Another processor may round a pixel to the next of 256 levels.
            assert np.mean(np.abs(again - kept) > 1) < 0.01
        assert stored["walks"].shape == (recording.PAIRS * recording.STAGES, 28, 28)
        # A walk begins and ends at a picture of the test set.
        test = mnist("test")
        for digit in range(2 * recording.PAIRS):
            true = test.images[np.flatnonzero(test.labels == digit)[0], 0].astype(int)
            place = digit // 2 * recording.STAGES + (digit % 2) * (recording.STAGES - 1)
            assert np.mean(np.abs(stored["walks"][place].astype(int) - true) > 1) < 0.01


def test_the_files_stay_small():
    assert (recording.HERE / "coupling_flows_mnist.npz").stat().st_size < 300_000


# ---------------------------------------------------------------- confirming


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the record, a training of one picture's cost, and scores as recorded."""
    for file in recording.HERE.glob("coupling_flows_mnist.*"):
        if file.suffix in (".json", ".npz"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(recording, "HERE", tmp_path)
    curve = RECORD["curve"]["bits"]
    monkeypatch.setattr(recording, "counts_of", lambda images: None)
    monkeypatch.setattr(recording, "mnist", lambda split: None)
    monkeypatch.setattr(recording, "scores", lambda flow: RECORD["scores"])
    now = {"code": "new", "commit": "now", "date": "today"}
    monkeypatch.setattr(recording, "made_by", lambda code: now)
    result = recording.Fit(3, [curve[0]] * 3, {})
    monkeypatch.setattr(recording, "fit", lambda *a, **k: result)
    return tmp_path / "coupling_flows_mnist.json", result


def test_code_that_computes_the_same_is_confirmed(copied):
    path, _ = copied
    recording.confirm()
    found = json.loads(path.read_text())
    assert found["code"] == "new"
    origin = RECORD.get("confirmed", {}).get("trained by", RECORD["code"])
    assert found["confirmed"]["trained by"] == origin
    assert found["commit"] == RECORD["commit"]  # that of the training


def test_other_results_are_not_confirmed(copied, monkeypatch):
    path, result = copied
    before = path.read_text()
    result.bits[0] += 0.01
    with pytest.raises(ValueError, match="the first"):
        recording.confirm()
    result.bits[0] -= 0.01
    monkeypatch.setattr(recording, "scores", lambda flow: {})
    with pytest.raises(ValueError, match="score"):
        recording.confirm()
    assert path.read_text() == before
