"""The recorded flow on MNIST: made by the code as it is now, and what it says is possible."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from book.recordings import rectified_flow_mnist as recording
from book.recordings.origin import definitions, fingerprint

RECORD = json.loads((recording.HERE / "rectified_flow_mnist.json").read_text(encoding="utf-8"))
SCORES = RECORD["scores"]
FLOWS = ("first", "reflowed")


@pytest.mark.parametrize("part", ["training", "scoring"])
def test_the_record_was_made_by_this_code(part):
    wanted = {"training": recording.TRAINING, "scoring": recording.SCORING}[part]
    assert RECORD["code"][part] == fingerprint(wanted), (
        f"the code behind the {part} of the recorded flow has changed: run "
        "`python -m book.recordings.rectified_flow_mnist`, then refresh the chapter"
    )


def test_every_definition_of_the_script_is_fingerprinted_or_only_told():
    """What is in neither list does not touch a number: where files lie, and keeping what was trained."""

    tree = ast.parse(Path(recording.__file__).read_text(encoding="utf-8"))
    names = set(definitions(tree))
    listed = {
        n for parts in (recording.TRAINING, recording.SCORING) for n in parts[recording._THIS]
    }
    assert names - listed == {"HERE", "_THIS", "_PKG", "TRAINING", "SCORING", "trained"}


def test_the_network_is_that_of_the_record():
    network = recording.VelocityUNet()
    assert sum(p.numel() for p in network.parameters()) == RECORD["weights"]
    assert RECORD["steps"] == list(recording.STEPS)
    x, t = torch.zeros(2, 1, 28, 28), torch.tensor([0.0, 1.0])
    assert network(x, t, label=torch.tensor([3, recording.NONE])).shape == x.shape


def test_every_run_is_recorded():
    for name in FLOWS:
        runs = [(row["method"], row["steps"]) for row in SCORES[name]["distance"]]
        wanted = [("euler", n) for n in recording.NFE]
        assert runs == wanted + (list(recording.RULES) if name == "first" else [])


def test_the_numbers_are_possible():
    floor = SCORES["between_real_pictures"]
    for name in FLOWS:
        scores = SCORES[name]
        # Data in [-1, 1] and normal noise: a velocity of 0 would have a loss of about 1.8.
        assert 0 < scores["test_loss"]["mean"] < 0.5
        assert scores["straightness"] > 0
        distances = [row["mean"] for row in scores["distance"]]
        # Samples cannot be nearer to pictures than other pictures are, but by chance.
        assert min(distances) > floor["mean"] - 4 * floor["standard_error"]
        assert max(distances) < 1
    for row in SCORES["first"]["bits_per_dimension"].values():
        assert 0 < row["mean"] < 8  # eight bits are an even guess


def test_reflow_makes_the_flow_straighter_and_one_step_better():
    first, second = (SCORES[name] for name in FLOWS)
    assert second["straightness"] < first["straightness"]
    ones = [scores["distance"][0] for scores in (first, second)]
    assert [row["steps"] for row in ones] == [1, 1]
    allowed = 3 * max(row["standard_error"] for row in ones)
    assert ones[1]["mean"] + allowed < ones[0]["mean"]


def test_the_stored_pictures_are_there():
    with np.load(recording.HERE / "rectified_flow_mnist.npz") as stored:
        for name in FLOWS:
            shown = stored[name]
            assert shown.shape == (len(recording.SHOWN), 10, 28, 28)
            assert shown.dtype == np.uint8
            # The border of a digit is black, once there are steps enough to draw it.
            assert float(shown[-1, :, :2].mean()) < 16
            assert float(shown[-1].max()) > 200
    assert (recording.HERE / "rectified_flow_mnist.npz").stat().st_size < 300_000


def test_a_short_training_learns_and_is_the_same_twice(monkeypatch):
    monkeypatch.setattr(
        recording, "pictures",
        lambda split: (torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8,
                                     generator=torch.Generator().manual_seed(0)),
                       torch.arange(64) % 10),
    )  # fmt: skip
    monkeypatch.setattr(recording, "BATCH", 8)
    torch.manual_seed(0)
    network = recording.VelocityUNet()
    found = []
    for _ in range(2):
        batches = recording.first_batches(torch.Generator().manual_seed(1))
        found.append(recording.optimise(copy.deepcopy(network), batches, 30, 1e-3))
    for a, b in zip(*(f.parameters() for f in found), strict=True):
        assert torch.equal(a, b)
    x1 = torch.zeros(64, 1, 28, 28)
    held = (
        torch.randn(x1.shape, generator=torch.Generator().manual_seed(2)),
        x1,
        torch.zeros(64).long(),
    )
    losses = [recording.test_loss(f, *held)["mean"] for f in (network, found[0])]
    assert losses[1] < losses[0]
