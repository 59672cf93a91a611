"""The trained networks that the chapter on dilated convolution shows.

    python -m book.recordings.dilated_convolution

Trains on the CPU, in some six minutes on one quiet core, and writes `dilated_convolution.json` (scores,
and what made them) and `dilated_convolution.npz` (the weights of the two mask networks). The tests
compare the recorded fingerprint with the code as it is now.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from book.recordings.origin import made_by
from pkg.algos.dilated_convolution import CausalDilatedStack, HybridDilatedStack
from pkg.algos.segmentation_metrics import confusion_matrix, mean_iou
from pkg.data import play, voc_masks

HERE = Path(__file__).parent
#: The code that the results come from.
CODE = (
    "book/recordings/dilated_convolution.py",
    "pkg/algos/dilated_convolution/operator.py",
    "pkg/algos/dilated_convolution/convolution.py",
    "pkg/algos/dilated_convolution/modules.py",
    "pkg/algos/dilated_convolution/causal.py",
)

#: Three layers that see 13 pixels each way, with the same number of weights.
MASK_RATES = ((2, 2, 2), (1, 2, 3), (3, 2, 1), (1, 1, 4))
MASK_CHANNELS, MASK_STEPS, MASK_SEEDS, CROP = 12, 150, (0, 1, 2), 64
NOISE = 0.35  # this share of the pixels has the wrong label

#: One to eight layers, doubling; then eight layers, so the same number of weights, that see less.
TEXT_RATES = (
    *(tuple(2**i for i in range(depth)) for depth in (8, 6, 4, 3, 2, 1)),
    (1, 2, 4, 8) * 2, (1,) * 8,
)  # fmt: skip
TEXT_STEPS, WINDOW, BATCH = 1200, 256, 8
PLAYS = ("hamlet", "lear", "macbeth", "othello", "tempest")
TEXT_SEEDS = (0,)
LEARNT = 0.9  # the first part of each play; the rest is for the score


# ---------------------------------------------------------------- masks


def mask_task(sample: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Return the object mask with wrong labels as -1 and 1, (1, H, W), and the true one; 255 is void."""
    flipped = np.random.default_rng(seed).random(sample.mask.shape) < NOISE
    noisy = (sample.mask > 0) ^ flipped
    truth = torch.from_numpy(sample.mask).long()
    truth = torch.where(truth == 255, truth, (truth > 0).long())
    return 2 * torch.from_numpy(noisy)[None].float() - 1, truth


def mask_network(rates: tuple[int, ...]) -> nn.Sequential:
    """Return a stack of dilated layers and a linear one: the score of background and object."""
    stack = HybridDilatedStack(1, MASK_CHANNELS, rates, allow_gridding=True)
    return nn.Sequential(stack, nn.Conv2d(MASK_CHANNELS, 2, 1))


def train_masks(rates: tuple[int, ...], seed: int) -> tuple[nn.Sequential, float]:
    """Train on the first two photographs; return the network and its mIoU on the third."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    samples = voc_masks()
    network = mask_network(rates)
    optimiser = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, MASK_STEPS)
    for step in range(MASK_STEPS):
        if step % 20 == 0:  # new noise now and then, so that it cannot be learnt by heart
            data = [mask_task(sample, 100 + 2 * step + i) for i, sample in enumerate(samples[:2])]
        crops = []
        for _ in range(8):
            x, truth = data[int(torch.randint(2, (), generator=draw))]
            i, j = (int(torch.randint(n - CROP, (), generator=draw)) for n in truth.shape)
            crops.append((x[:, i : i + CROP, j : j + CROP], truth[i : i + CROP, j : j + CROP]))
        x, truth = (torch.stack(part) for part in zip(*crops, strict=True))
        loss = cross_entropy(network(x), truth, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval(), score_masks(network, samples[2])


def score_masks(network: nn.Sequential, sample: Any) -> float:
    """Return the mIoU, in percent, on a photograph."""
    x, truth = mask_task(sample, 0)
    with torch.no_grad():
        guess = network(x[None])[0].argmax(0)
    return 100 * float(mean_iou(confusion_matrix(truth, guess, 2, ignore_index=255)))


# ---------------------------------------------------------------- text


def as_bytes(text: str) -> Tensor:
    """Return the bytes of a text, int64."""
    return torch.tensor(list(text.encode("ascii")))


def as_input(text: Tensor) -> Tensor:
    """Return bytes (N, T) as (N, 128, T): one of 128 channels is on, at a mean square of 1."""
    return one_hot(text, 128).mT.float() * 128**0.5


def split_plays() -> tuple[Tensor, list[Tensor]]:
    """Return the first part of all plays, one after the other, and the rest of each."""
    plays = [as_bytes(play(name)) for name in PLAYS]
    cuts = [int(LEARNT * len(text)) for text in plays]
    pairs = list(zip(plays, cuts, strict=True))
    return torch.cat([text[:cut] for text, cut in pairs]), [text[cut:] for text, cut in pairs]


def train_text(rates: tuple[int, ...], seed: int) -> tuple[CausalDilatedStack, float]:
    """Train on the first part of each play; return the stack and its bits per byte on the rest."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    text, rest = split_plays()
    stack = CausalDilatedStack(128, 128, channels=32, rates=rates)
    optimiser = torch.optim.Adam(stack.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, TEXT_STEPS)
    for _ in range(TEXT_STEPS):
        starts = torch.randint(len(text) - WINDOW - 1, (BATCH,), generator=draw)
        windows = torch.stack([text[a : a + WINDOW + 1] for a in starts.tolist()])
        scores = stack(as_input(windows[:, :-1]))  # (N, 128, T)
        loss = cross_entropy(scores, windows[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return stack, score_text(stack, rest)


def score_text(stack: CausalDilatedStack, texts: list[Tensor]) -> float:
    """Return the bits per byte of texts: of each byte but the first, given all before it."""
    bits = 0.0
    with torch.no_grad():
        for text in texts:
            scores = stack(as_input(text[None, :-1]))
            bits += float(cross_entropy(scores, text[None, 1:], reduction="sum")) / float(np.log(2))
    return bits / sum(len(text) - 1 for text in texts)


# ---------------------------------------------------------------- record


def main() -> None:
    """Train everything and write the two files."""
    torch.set_num_threads(1)
    begun, origin = time.time(), made_by(CODE)
    masks: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for rates in MASK_RATES:
        scores = []
        for seed in MASK_SEEDS:
            network, score = train_masks(rates, seed)
            scores.append(round(score, 2))
            if seed == MASK_SEEDS[0] and rates in MASK_RATES[:2]:
                key = "-".join(map(str, rates))
                weights |= {f"{key}/{k}": v.numpy() for k, v in network.state_dict().items()}
        count = sum(p.numel() for p in network.parameters())
        masks.append({"rates": rates, "weights": count, "miou": scores})
        print(masks[-1], flush=True)
    np.savez_compressed(HERE / "dilated_convolution.npz", **weights)
    texts: list[dict[str, Any]] = []
    for rates in TEXT_RATES:
        scores = []
        for seed in TEXT_SEEDS:
            stack, score = train_text(rates, seed)
            scores.append(round(score, 4))
        count = sum(p.numel() for p in stack.parameters())
        field = stack.receptive_field
        texts.append({"rates": rates, "field": field, "weights": count, "bits": scores})
        print(texts[-1], flush=True)
    record = {
        "command": "python -m book.recordings.dilated_convolution",
        **origin,
        "minutes": round((time.time() - begun) / 60, 1),
        "masks": masks,
        "text": texts,
    }
    path = HERE / "dilated_convolution.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
