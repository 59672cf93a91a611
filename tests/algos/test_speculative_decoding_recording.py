"""The recorded measurements: made by the code as it is now, whole, and in keeping with themselves."""

from __future__ import annotations

import json

import pytest
import torch

from book.recordings import speculative_decoding as recording
from book.recordings.origin import fingerprint
from pkg.algos.speculative_decoding import PromptLookupDrafter, speculative_generate
from pkg.data.smollm2 import chat
from tests.algos.language_model_cases import bf16_model

RECORD = json.loads((recording.HERE / "speculative_decoding.json").read_text(encoding="utf-8"))


def test_the_record_was_made_by_this_code():
    assert RECORD["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded measurements has changed: run "
        "`python -m book.recordings.speculative_decoding`, then refresh the chapter"
    )


def test_every_kind_of_text_and_every_drafter_is_recorded():
    found = {(r["kind"], r["drafter"], r["temperature"]) for r in RECORD["runs"]}
    names = ("prompt_lookup", "retrieval", "distilled", "early_exit")
    for kind in recording.PROMPTS:
        assert {(kind, name, t) for name in names for t in (0.0, 1.0)} <= found
    assert ("chat", "self", 0.0) in found
    assert {r["gamma"] for r in RECORD["sweep"]} == set(recording.GAMMAS)


def test_the_counts_add_up():
    """Each step gives one token more than it accepts, and tests what follows an accepted one."""
    for r in RECORD["runs"] + RECORD["sweep"]:
        assert r["tokens"] == RECORD["tokens"] == sum(r["accepted"]) + r["steps"]
        assert all(a <= t for a, t in zip(r["accepted"], r["tested"], strict=True))
        assert all(t <= a for t, a in zip(r["tested"][1:], r["accepted"], strict=False))
        assert r["speedup"] == pytest.approx(
            r["tokens_per_second"] / r["plain_tokens_per_second"], abs=0.01
        )


def test_greedy_runs_are_the_plain_text_up_to_a_tie():
    """Where bfloat16 parts from plain decoding, the two logits are within a few of its steps."""
    for r in RECORD["runs"]:
        if r["temperature"] == 0 and r["gap"] is not None:
            # logits up to 32 are spaced 1/8 apart; both carry the errors of 30 layers
            assert r["gap"] <= 1.0, r


def test_a_recorded_run_can_be_repeated():
    """The counts, not the times: rounding on another processor may move a few near ties."""
    wanted = next(r for r in RECORD["runs"] if r["kind"] == "repetition"
                  and r["drafter"] == "prompt_lookup" and r["temperature"] == 0)  # fmt: skip
    found = speculative_generate(
        bf16_model(), chat(recording.PROMPTS["repetition"]), PromptLookupDrafter(),
        gamma=recording.GAMMA, temperature=0.0, max_tokens=RECORD["tokens"], stop=(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.tokens_per_step > 0.5 * wanted["tokens_per_step"]
