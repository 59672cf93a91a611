"""The recorded flows: made by the code as it is now, and the stored weights score what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from book.recordings import rectified_flow as recording
from book.recordings.origin import fingerprint

RECORD = json.loads((recording.HERE / "rectified_flow.json").read_text(encoding="utf-8"))


def test_the_record_was_made_by_this_code():
    assert RECORD["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded flows has changed: run "
        "`python -m book.recordings.rectified_flow`, then refresh the chapter"
    )


@pytest.mark.parametrize("name", recording.PLANE_SETS)
@pytest.mark.parametrize("kind", recording.PLANE_FLOWS)
def test_the_stored_plane_flows_score_what_is_recorded(name, kind):
    network = recording.stored(f"{name}/{kind}", recording.plane_network())
    again, kept = recording.plane_scores(name, network), RECORD["plane"][name][kind]
    # float32 sums of 2,000 terms, in another order on another processor
    assert abs(again["straightness"] - kept["straightness"]) <= 1e-3 * kept["straightness"] + 2e-5
    assert abs(again["cost"] - kept["cost"]) < 1e-3
    np.testing.assert_allclose(again["distance"], kept["distance"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["independent", "reflowed"])
def test_the_stored_digit_flows_score_what_is_recorded(kind):
    network = recording.stored(f"digits/{kind}", recording.digit_network())
    sample = recording.draw_digits(network, 2, 1000)
    distance = recording.sliced_wasserstein(
        sample, recording.held_out(), recording.digit_directions()
    )
    # another processor may put a few of 32,768 pixels into the neighbouring level
    assert abs(float(distance) - RECORD["digits"][kind]["distance"]["2"][0]) < 2e-3


def test_the_stored_first_flow_has_the_recorded_likelihood():
    network = recording.stored("digits/independent", recording.digit_network())
    bits = recording.bits_per_dimension(network, "test")
    # float32 and a solver that chooses its steps: a ten thousandth of a bit
    assert abs(float(bits.mean()) - RECORD["digits"]["independent"]["test"]["bits"]) < 1e-3


def test_levels_survive_the_way_there_and_back():
    levels, _ = recording.load("validation")
    x = recording.dequantise(levels, torch.Generator().manual_seed(0))
    assert torch.equal(recording.quantise(x), levels.float())


def test_the_log_scale_is_that_of_autograd():
    levels, _ = recording.load("test")
    place = (levels[:5].double() + 0.3).requires_grad_()
    share = recording.EDGE + (1 - 2 * recording.EDGE) * place / 17
    x = torch.logit(share) / recording.SPREAD
    (slope,) = torch.autograd.grad(x.sum(), place)
    torch.testing.assert_close(recording.log_scale(x.detach()), slope.log().sum(1))


def test_every_number_of_steps_is_recorded():
    for kind in ("independent", "reflowed"):
        rows = RECORD["digits"][kind]["distance"]
        assert list(rows) == [str(n) for n in recording.EULER_STEPS]
        assert {len(row) for row in rows.values()} == {recording.DRAWS}
    assert len(RECORD["digits"]["real"]) == recording.DRAWS
