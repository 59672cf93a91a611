"""The recorded training: made by the code as it is now, and its stored networks score what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from book.recordings import dilated_convolution as recording
from book.recordings.origin import fingerprint
from pkg.algos.dilated_convolution import receptive_field
from pkg.data import voc_masks

RECORD = json.loads((recording.HERE / "dilated_convolution.json").read_text(encoding="utf-8"))


def test_the_record_was_made_by_this_code():
    assert RECORD["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded networks has changed: run "
        "`python -m book.recordings.dilated_convolution`, then refresh the chapter"
    )


@pytest.mark.parametrize("row", [0, 1])
def test_the_stored_networks_score_what_is_recorded(row):
    rates = recording.MASK_RATES[row]
    network = recording.mask_network(rates).eval()
    key = "-".join(map(str, rates)) + "/"
    with np.load(recording.HERE / "dilated_convolution.npz") as stored:
        weights = {n.removeprefix(key): torch.from_numpy(stored[n]) for n in stored if key in n}
    network.load_state_dict(weights)
    score = recording.score_masks(network, voc_masks()[2])
    # recorded to two digits; another processor may turn a few of 170,000 pixels that are near a tie
    assert abs(score - RECORD["masks"][row]["miou"][0]) < 0.05
    assert RECORD["masks"][row]["weights"] == sum(p.numel() for p in network.parameters())


def test_the_mask_networks_are_of_equal_size_and_reach():
    assert len({row["weights"] for row in RECORD["masks"]}) == 1
    fields = {receptive_field([(3, rate) for rate in row["rates"]]) for row in RECORD["masks"]}
    assert fields == {13}


def test_every_text_model_is_recorded_with_its_field():
    rows = {tuple(row["rates"]): row for row in RECORD["text"]}
    assert set(rows) == set(recording.TEXT_RATES)
    for rates, row in rows.items():
        assert row["field"] == receptive_field([(2, rate) for rate in rates])
        # below 7 bits of ASCII, above what the best compressors reach on English
        assert all(1.5 < bits < 7 for bits in row["bits"])
    assert len({row["weights"] for rates, row in rows.items() if len(rates) == 8}) == 1
