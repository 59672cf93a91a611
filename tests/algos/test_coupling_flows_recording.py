"""The recorded flows: made by the code as it is now, and the stored weights score what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from book.recordings import coupling_flows as recording
from book.recordings.origin import fingerprint
from pkg.algos.coupling_flows import bits_per_dim, dequantise

RECORD = json.loads((recording.HERE / "coupling_flows.json").read_text(encoding="utf-8"))
ROWS = {row["name"]: row for row in RECORD["models"]}


def test_the_record_was_made_by_this_code():
    assert RECORD["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded flows has changed: run "
        "`python -m book.recordings.coupling_flows`, then refresh the chapter"
    )


@pytest.mark.parametrize("name", ROWS)
def test_the_stored_weights_score_what_is_recorded(name):
    model = recording.load(name)
    found = recording.score(model, recording.counts_of("test"))
    # recorded to four digits; another processor adds in another order
    assert abs(float(found.double().mean()) - ROWS[name]["test"]) < 2e-4
    assert ROWS[name]["weights"] == sum(p.numel() for p in model.parameters())


def test_the_order_of_the_models_on_held_out_digits():
    """Far beyond their standard errors: NICE beats a Gaussian, RealNVP and Glow beat a mixture."""
    counts = {name: recording.counts_of(name) for name in ("train", "test")}
    draw = torch.Generator().manual_seed(0)
    x = {
        name: torch.cat([dequantise(c, bins=17, generator=draw) for _ in range(4)]).flatten(1)
        for name, c in counts.items()
    }
    told = {}
    for name, parts in (("Gaussian", 1), ("mixture", 5)):
        model = GaussianMixture(parts, reg_covar=1e-5, random_state=0).fit(x["train"].numpy())
        mean = torch.tensor(float(model.score(x["test"].numpy())), dtype=torch.float64)
        told[name] = float(bits_per_dim(mean, 64, 17))
    told |= {name: row["test"] for name, row in ROWS.items()}
    assert told["NICE"] < told["Gaussian"] - 0.1
    assert max(told["RealNVP"], told["Glow"]) < told["mixture"] - 0.1
    assert max(told.values()) < np.log2(17)


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match="name must be one of"):
        recording.model("VAE")
