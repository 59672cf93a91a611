"""What speculation gains on SmolLM2: the measurements that the chapter shows.

    python -m book.recordings.speculative_decoding

Runs on the CPU in bfloat16, in some five minutes on two quiet cores (`--tokens` makes it shorter), and writes
`speculative_decoding.json`. The student must have been trained before
(`python -m book.recordings.speculative_decoding_drafter`). Plain decoding and the drafters take turns,
and of each the fastest of its turns counts, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from book.recordings.origin import ROOT, made_by
from pkg.algos.language_model import Generation, LanguageModel, generate
from pkg.algos.speculative_decoding import (
    DistilledDrafter,
    EarlyExitDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    RetrievalDrafter,
    best_gamma,
    expected_tokens,
    speculative_generate,
)
from pkg.algos.speculative_decoding.drafts import Options
from pkg.algos.speculative_decoding.generate import Speculation
from pkg.data.smollm2 import chat, smollm2

HERE = ROOT / "book" / "recordings"
#: The code that the results come from.
CODE = (
    "book/recordings/speculative_decoding.py",
    *(f"pkg/algos/language_model/{n}.py" for n in ("model", "attention", "cache", "generate")),
    *(
        f"pkg/algos/speculative_decoding/{n}.py"
        for n in ("generate", "drafters", "lookup", "chain")
    ),
)
TOKENS, GAMMA, TURNS, SEED = 96, 4, 2, 5
GAMMAS = (1, 2, 3, 4, 6, 8, 12, 16)
WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 17)
EXIT = 25

_PASSAGE = (
    "Lighthouses once stood watch on every dangerous coast. Their keepers lit oil lamps at dusk, "
    "trimmed the wicks through the night, and polished the great lenses by day. In the twentieth "
    "century electric lamps and automatic switches took over the work, one tower after another, and the "
    "keepers went ashore. Many towers are now museums; others still flash, watched by nobody, for the "
    "few sailors who look up from their satellite maps."
)
#: What the model is asked: four kinds of text. None of it is about what the student was trained on.
PROMPTS = {
    "chat": "How do airplanes fly?",
    "code": "Write a Python function that returns the n-th Fibonacci number, and three tests for it.",
    "repetition": f"Copy this text word for word: {_PASSAGE}",
    "summary": f"Summarize this passage in two sentences. {_PASSAGE}",
}


def make_drafters(model: LanguageModel) -> dict[str, Any]:
    """Return the drafters, by the names that the chapter gives them."""
    path = HERE / "speculative_decoding_drafter.npz"
    with np.load(path) as stored:
        answers = torch.from_numpy(stored["answers"].astype(np.int64))
    return {
        "prompt_lookup": PromptLookupDrafter(),
        "retrieval": RetrievalDrafter(answers),
        "distilled": DistilledDrafter(model, path),
        "early_exit": EarlyExitDrafter(model, EXIT),
        "self": ModelDrafter(model),
    }


def speculate(
    model: LanguageModel, prompt: Tensor, drafter: Any, gamma: int, temperature: float, tokens: int
) -> Speculation:
    """Write so many tokens by speculation."""
    return speculative_generate(
        model, prompt, drafter, gamma=gamma, temperature=temperature, max_tokens=tokens, stop=(),
        generator=torch.Generator().manual_seed(SEED),
    )  # fmt: skip


def write(model: LanguageModel, prompt: Tensor, temperature: float, tokens: int) -> Generation:
    """Write so many tokens one by one."""
    return generate(model, prompt, max_tokens=tokens, temperature=temperature, stop=(),
                    generator=torch.Generator().manual_seed(SEED))  # fmt: skip


def turns(
    model: LanguageModel, prompt: Tensor, tasks: dict[str, tuple[Any, int]], temperature: float,
    tokens: int,
) -> tuple[Generation, dict[str, Speculation]]:  # fmt: skip
    """Let plain decoding and each (drafter, gamma) write in turn; return the fastest run of each.

    At temperature 1 each has one turn: what counts there is how much is accepted.
    """
    plain: list[Generation] = []
    runs: dict[str, list[Speculation]] = {name: [] for name in tasks}
    for _ in range(TURNS if temperature == 0 else 1):
        plain.append(write(model, prompt, temperature, tokens))
        for name, (drafter, gamma) in tasks.items():
            runs[name].append(speculate(model, prompt, drafter, gamma, temperature, tokens))
    best = {name: max(found, key=lambda r: r.tokens_per_second) for name, found in runs.items()}
    return max(plain, key=lambda run: run.tokens_per_second), best


def row(found: Speculation, plain: Generation) -> dict[str, Any]:
    """Return what is recorded of a run."""
    return {
        "tokens": len(found.tokens[0]),
        "steps": found.steps,
        "tested": found.tested.tolist(),
        "accepted": found.accepted.tolist(),
        "tokens_per_step": round(found.tokens_per_step, 3),
        "tokens_per_second": round(found.tokens_per_second, 2),
        "plain_tokens_per_second": round(plain.tokens_per_second, 2),
        "speedup": round(found.tokens_per_second / plain.tokens_per_second, 3),
        "seconds": {name: round(time_, 4) for name, time_ in found.seconds.items()},
    }


@torch.inference_mode()
def compare(model: LanguageModel, prompt: Tensor, found: Tensor, plain: Tensor) -> dict[str, Any]:
    """Return how many tokens are those of plain decoding, and how near the two logits were there."""
    different = (found != plain).nonzero()
    if not len(different):
        return {"same_as_plain": len(plain), "gap": None}
    place = int(different[0])
    logits = model(torch.cat((prompt, plain[:place]))).logits[-1].float()
    gap = abs(float(logits[plain[place]] - logits[found[place]]))
    return {"same_as_plain": place, "gap": round(gap, 4)}


def measure_runs(
    model: LanguageModel, drafters: dict[str, Any], tokens: int
) -> list[dict[str, Any]]:
    """Measure every kind of text with every drafter, greedily and at temperature 1."""
    rows = []
    for kind, question in PROMPTS.items():
        prompt = model.encode(chat(question))
        for temperature in (0.0, 1.0):
            chosen = [n for n in drafters if n != "self" or kind == "chat"]
            tasks = {name: (drafters[name], GAMMA) for name in chosen}
            plain, runs = turns(model, prompt, tasks, temperature, tokens)
            for name, found in runs.items():
                told = {"kind": kind, "drafter": name, "temperature": temperature, "gamma": GAMMA}
                told |= row(found, plain)
                if temperature == 0:
                    told |= compare(model, prompt, found.tokens[0], plain.tokens[0])
                rows.append(told)
                print({k: told[k] for k in ("kind", "drafter", "temperature", "accepted", "speedup")},
                      flush=True)  # fmt: skip
    return rows


def measure_sweep(
    model: LanguageModel, drafters: dict[str, Any], tokens: int
) -> list[dict[str, Any]]:
    """Measure two drafters with every gamma: one where speculation gains, one where it hardly does."""
    rows = []
    for kind, name in (("repetition", "prompt_lookup"), ("chat", "distilled")):
        tasks = {str(gamma): (drafters[name], gamma) for gamma in GAMMAS}
        plain, runs = turns(model, model.encode(chat(PROMPTS[kind])), tasks, 0.0, tokens)
        for gamma in GAMMAS:
            found = runs[str(gamma)]
            rows.append({"kind": kind, "drafter": name, "gamma": gamma, "rate": round(found.rate, 4)}
                        | row(found, plain))  # fmt: skip
            print({k: rows[-1][k] for k in ("kind", "gamma", "rate", "speedup")}, flush=True)
    return rows


@torch.inference_mode()
def measure_cost(model: LanguageModel, drafters: dict[str, Any]) -> dict[str, Any]:
    """Measure a pass over so many tokens after 200, and a draft token, in milliseconds."""
    text = model.encode(PROMPTS["summary"] * 3)[:200]
    cache = model.new_cache(1, 256)
    model.hidden(text[None], cache=cache)
    passes: dict[str, list[float]] = {str(width): [] for width in WIDTHS}
    drafts: dict[str, list[float]] = {name: [] for name in drafters}
    numbers = torch.zeros(1, GAMMA)
    for drafter in drafters.values():
        drafter.start(1, model.shape.vocabulary)
        drafter.propose([text], GAMMA, Options(0.0), numbers)
    for _ in range(9):
        for width in WIDTHS:
            cache.rollback([200])
            begun = time.perf_counter()
            model(text[None, :width], cache=cache)
            passes[str(width)].append(time.perf_counter() - begun)
        for name, drafter in drafters.items():
            begun = time.perf_counter()
            drafter.propose([text], GAMMA, Options(0.0), numbers)
            drafts[name].append((time.perf_counter() - begun) / GAMMA)
    return {
        "pass_milliseconds": {n: round(1e3 * float(np.median(x)), 3) for n, x in passes.items()},
        "draft_milliseconds": {n: round(1e3 * float(np.median(x)), 4) for n, x in drafts.items()},
    }


def choose(sweep: list[dict[str, Any]], cost: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each sweep the gamma that theory picks, and the one that was fastest.

    The plain theory takes a pass over gamma + 1 tokens to cost as much as one over a single token; the
    other choice takes the measured cost of such a pass, interpolated.
    """
    single = cost["pass_milliseconds"]["1"]
    widths = [float(width) for width in cost["pass_milliseconds"]]
    times = list(cost["pass_milliseconds"].values())
    chosen = []
    for kind in dict.fromkeys(entry["kind"] for entry in sweep):
        rows = [entry for entry in sweep if entry["kind"] == kind]
        tested, accepted = (sum(sum(r[key]) for r in rows) for key in ("tested", "accepted"))
        alpha = accepted / tested
        draft = cost["draft_milliseconds"][rows[0]["drafter"]]

        def rate(gamma: int, alpha: float = alpha, draft: float = draft) -> float:
            taken = gamma * draft + float(np.interp(gamma + 1, widths, times))
            return float(expected_tokens(alpha, gamma)) / taken

        chosen.append({
            "kind": kind,
            "drafter": rows[0]["drafter"],
            "alpha": round(alpha, 4),
            "cost_ratio": round(draft / single, 4),
            "predicted_gamma": best_gamma(alpha, draft / single, max_gamma=max(GAMMAS)),
            "predicted_gamma_by_cost": max(GAMMAS, key=rate),
            "predicted_speedup_by_cost": {str(g): round(rate(g) * single, 3) for g in GAMMAS},
            "fastest_gamma": max(rows, key=lambda r: r["tokens_per_second"])["gamma"],
        })  # fmt: skip
    return chosen


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args()
    threads, tokens = options.threads, options.tokens
    torch.set_num_threads(threads)
    begun, origin = time.time(), made_by(CODE, f"{threads} threads")
    model = smollm2().to(torch.bfloat16)
    drafters = make_drafters(model)
    cost = measure_cost(model, drafters)
    print(cost, flush=True)
    runs = measure_runs(model, drafters, tokens)
    sweep = measure_sweep(model, drafters, tokens)
    record = {
        "command": "python -m book.recordings.speculative_decoding "
        f"--threads {threads} --tokens {tokens}",
        **origin,
        "threads": threads,
        "tokens": tokens,
        "minutes": round((time.time() - begun) / 60, 1),
        "prompts": {
            kind: {"text": question, "tokens": len(model.encode(chat(question)))}
            for kind, question in PROMPTS.items()
        },
        "cost": cost,
        "runs": runs,
        "sweep": sweep,
        "choice": choose(sweep, cost),
    }
    path = HERE / "speculative_decoding.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
