"""The small model that drafts for SmolLM2 in the chapter on speculative decoding.

    python -m book.recordings.speculative_decoding_drafter

SmolLM2 answers a few hundred questions, and a student of one million weights learns to guess the
teacher's next token from what it wrote. Five minutes on one quiet core. Writes
`speculative_decoding_drafter.npz` (the student's weights as float16, and the answers, which also serve
`RetrievalDrafter`) and `.json` (what made them). The questions that the chapter measures on are about
other things.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from book.recordings.origin import ROOT, made_by
from pkg.algos.language_model import LanguageModel, sample, sampling_distribution
from pkg.algos.language_model.generate import read_prompts
from pkg.algos.speculative_decoding.student import initial_weights, student_model
from pkg.data.smollm2 import chat, smollm2

HERE = ROOT / "book" / "recordings"
#: The code that the results come from.
CODE = (
    "book/recordings/speculative_decoding_drafter.py",
    "pkg/algos/speculative_decoding/student.py",
    "pkg/algos/language_model/model.py",
)
BATCHES, REQUESTS, TOKENS, LABELS = 2, 96, 192, 16
SHORTLIST, STEPS, ROWS, RATE = 4096, 220, 16, 4e-3

TOPICS = (
    "photosynthesis", "the French Revolution", "black holes", "bread", "chess", "the immune system",
    "volcanoes", "inflation", "the Roman Empire", "jazz", "climate change", "electric cars",
    "the human heart", "gardening", "the moon", "vaccines", "coffee", "democracy", "earthquakes",
    "machine learning", "the ocean", "sleep", "bicycles", "the Renaissance", "magnets", "honey bees",
    "prime numbers", "the internet", "whales", "recycling", "yoga", "rivers", "batteries", "bridges",
    "the printing press", "migration of birds", "dreams", "glass", "the stock market", "rice",
)  # fmt: skip
QUESTIONS = (
    "What is {}?", "Explain {} to a child.", "Give me five facts about {}.", "Why does {} matter?",
    "Write a short story about {}.", "Write a short poem about {}.", "What is the history of {}?",
    "List the advantages and disadvantages of {}.", "How would you teach {} in school?",
    "Write an email to a friend about {}.", "Write a Python function that has to do with {}.",
    "What are common misconceptions about {}?", "Summarize what is known about {}.",
    "Write a Python class that models {}, with comments.", "Ask me three questions about {}.",
    "Compare {} with something similar.", "Give a step-by-step guide to {}.",
    "Write a dialogue between two people who talk about {}.",
)  # fmt: skip


def questions(count: int, generator: torch.Generator) -> list[str]:
    """Return `count` different questions."""
    order = torch.randperm(len(TOPICS) * len(QUESTIONS), generator=generator)[:count].tolist()
    return [QUESTIONS[i % len(QUESTIONS)].format(TOPICS[i // len(QUESTIONS)]) for i in order]


@torch.inference_mode()
def answer(
    model: LanguageModel, asked: list[str], generator: torch.Generator
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Let the model answer; return the prompts, and for each new token its likeliest candidates.

    The second is int64, (requests, TOKENS, 1 + LABELS): the token that was drawn, then the likeliest;
    the third, (requests, TOKENS, LABELS), holds the probabilities of those.
    """
    requests = [model.encode(chat(question)) for question in asked]
    cache = model.new_cache(len(requests), max(map(len, requests)) + TOKENS)
    last = read_prompts(model, requests, cache)
    ids, laws = [], []
    for _ in range(TOKENS):
        logits = model.read_out(last)
        top = sampling_distribution(logits).topk(LABELS)
        law = sampling_distribution(logits, temperature=0.8)
        draws = torch.rand(len(requests), dtype=torch.float64, generator=generator)
        new = sample(law, draws)
        ids.append(torch.cat((new.unsqueeze(1), top.indices), 1))
        laws.append(top.values)
        last = model.hidden(new.unsqueeze(1), cache=cache)[:, -1]
    return requests, torch.stack(ids, 1), torch.stack(laws, 1)


Row = tuple[Tensor, Tensor, Tensor, int]


def corpus(model: LanguageModel, batches: int, generator: torch.Generator) -> list[Row]:
    """Return for each answer (prompt and answer, candidates, probabilities, where it begins)."""
    asked, rows = questions(batches * REQUESTS, generator), []
    for i in range(batches):
        batch = asked[i * REQUESTS : (i + 1) * REQUESTS]
        for prompt, ids, laws in zip(*answer(model, batch, generator), strict=True):
            written = ids[:, 0]
            ended = (written == model.shape.end).nonzero()
            count = int(ended[0]) + 1 if len(ended) else TOKENS
            text = torch.cat((prompt, written[:count]))
            rows.append((text, ids[:count, 1:], laws[:count], len(prompt)))
        print(f"batch {i + 1} of {batches}: {sum(len(row[1]) for row in rows)} tokens", flush=True)
    return rows


def loss_of(
    teacher: LanguageModel, own: dict[str, Tensor], shortlist: Tensor, rows: list[Row]
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy with the teacher's law, in nats, and the share of equal first choices.

    Both are over the positions of the answers, and over the part of the law on the shortlist.
    """
    place = torch.full((teacher.shape.vocabulary,), -1)
    place[shortlist] = torch.arange(len(shortlist))
    longest = max(len(row[0]) for row in rows) - 1
    tokens = torch.stack(
        [torch.nn.functional.pad(r[0][:-1], (0, longest + 1 - len(r[0]))) for r in rows]
    )
    used, tokens = tokens.unique(return_inverse=True)
    logits, _ = student_model(teacher, own, shortlist, used)(tokens)
    ours = torch.cat([logits[i, r[3] - 1 : len(r[0]) - 1] for i, r in enumerate(rows)])
    wanted, weight = (torch.cat([r[i] for r in rows]) for i in (1, 2))  # (positions, LABELS)
    spot = place[wanted]
    weight = weight * (spot >= 0)
    found = ours.log_softmax(-1).gather(-1, spot.clamp(min=0))
    total = -(weight * found).sum() / weight.sum()
    return total, (ours.argmax(-1) == spot[:, 0]).float().mean()


def train(
    teacher: LanguageModel, rows: list[Row], steps: int, generator: torch.Generator
) -> dict[str, Any]:
    """Train the student; return its weights, its shortlist, and how it does on the last rows."""
    held, seen = rows[-24:], rows[:-24]
    counts = torch.bincount(
        torch.cat([r[1].flatten() for r in seen]), minlength=teacher.shape.vocabulary
    )
    shortlist = counts.topk(SHORTLIST).indices.sort().values
    own = initial_weights(teacher, shortlist, generator)
    for weight in own.values():
        weight.requires_grad_()
    optimiser = torch.optim.AdamW(own.values(), RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    for step in range(steps):
        drawn = torch.randint(len(seen), (ROWS,), generator=generator).tolist()
        with torch.autocast("cpu", torch.bfloat16):  # the products; weights and sums stay float32
            loss, _ = loss_of(teacher, own, shortlist, [seen[i] for i in drawn])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 24 or step == steps - 1:
            with torch.no_grad():
                tested = [float(x) for x in loss_of(teacher, own, shortlist, held)]
            print(f"step {step + 1}: {loss.item():.3f}; held out {tested}", flush=True)
    weights = {name: weight.detach().half().numpy() for name, weight in own.items()}
    return {"weights": weights, "shortlist": shortlist, "held_out": tested}


def main() -> None:
    """Write the answers, train the student, and store both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, busy, origin = time.time(), time.process_time(), made_by(CODE)
    teacher = smollm2()
    generator = torch.Generator().manual_seed(8)
    rows = corpus(teacher.to(torch.bfloat16), options.batches, generator)
    found = train(teacher, rows, options.steps, generator)
    answers = torch.cat([row[0][row[3] :] for row in rows]).numpy().astype(np.uint16)
    path = HERE / "speculative_decoding_drafter.npz"
    shortlist = found["shortlist"].numpy().astype(np.uint16)
    np.savez_compressed(path, shortlist=shortlist, answers=answers, **found["weights"])
    record = {
        "command": "python -m book.recordings.speculative_decoding_drafter "
        f"--batches {options.batches} --steps {options.steps}",
        **origin,
        "minutes": round((time.time() - begun) / 60, 1),
        "processor_minutes": round((time.process_time() - busy) / 60, 1),
        "weights": sum(int(w.size) for w in found["weights"].values()),
        "answers": len(rows),
        "tokens": len(answers),
        "held_out": {
            "cross_entropy_nats": round(found["held_out"][0], 3),
            "equal_first_choice": round(found["held_out"][1], 3),
        },
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
