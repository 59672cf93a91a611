"""The three flows on the 8 × 8 digits that the chapter on coupling flows shows.

    python -m book.recordings.coupling_flows
    python -m book.recordings.coupling_flows --confirm

Trains NICE, RealNVP and Glow on the CPU, and RealNVP once more with learnt dequantisation, and
writes `coupling_flows.json` (bits per dimension, and what made them) and `coupling_flows.npz` (the
weights, in 16 bits). All numbers are of the weights as they are stored. The tests compare the
recorded fingerprint with the code as it is now. `load(name)` gives a flow, ready to use.

Where code has changed and should give the same, `--confirm` repeats the first steps of each training and
all scores. If every recorded digit comes out again, it renews the fingerprint; else it says what differs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from book.recordings.origin import fingerprint, made_by
from pkg.algos.coupling_flows import (
    NICE,
    Flow,
    Glow,
    RealNVP,
    VariationalDequantisation,
    bits_per_dim,
    dequantise,
)
from pkg.algos.coupling_flows.networks import ConvNet
from pkg.data import digits

HERE = Path(__file__).parent
_FLOWS = "pkg/algos/coupling_flows"
#: The definitions that the results come from; with no names, all of the file.
CODE: dict[str, tuple[str, ...]] = {
    "book/recordings/coupling_flows.py": (),
    f"{_FLOWS}/transform.py": ("Transform", "per_sample", "total"),
    f"{_FLOWS}/functional.py": ("log_scales", "affine_coupling", "affine_coupling_inverse"),
    f"{_FLOWS}/couplings.py": ("_Coupling", "AdditiveCoupling", "AffineCoupling"),
    f"{_FLOWS}/masks.py": ("ChannelMask", "CheckerboardMask"),
    f"{_FLOWS}/networks.py": (),
    f"{_FLOWS}/linear.py": (
        "_along", "_positions", "_logdet", "ActNorm", "Invertible1x1Conv", "Scaling", "Squeeze",
    ),
    f"{_FLOWS}/compose.py": ("Compose", "MultiScale"),
    f"{_FLOWS}/flow.py": (),
    f"{_FLOWS}/models.py": (),
    f"{_FLOWS}/pixels.py": (),
}  # fmt: skip

SHAPE, BINS, BATCH = (1, 8, 8), 17, 128
#: name -> steps and Adam's largest rate
TRAINING = {"NICE": (4000, 2e-3), "RealNVP": (1000, 3e-3), "Glow": (1000, 3e-3)}
LEARNT = "RealNVP, learnt noise"
DRAWS = 10  # how often a picture is spread over its bins when it is scored
EVERY = 50  # steps between looks at the validation set


def counts_of(split: str) -> Tensor:
    """Return the pictures as counts, (N, 1, 8, 8), int64."""
    return torch.from_numpy(digits(split).images).long()


def model(name: str, seed: int = 0) -> Flow:
    """Return an untrained flow."""
    drawn = torch.Generator().manual_seed(seed)
    if name == "NICE":
        return NICE(SHAPE, couplings=4, hidden=(96, 96), generator=drawn)
    if name in ("RealNVP", LEARNT):
        return RealNVP(SHAPE, levels=2, hidden=24, generator=drawn)
    if name == "Glow":
        return Glow(SHAPE, levels=2, steps=6, hidden=32, alpha=0.05, generator=drawn)
    raise ValueError(f"name must be one of {(*TRAINING, LEARNT)}, got {name!r}")


def learnt_noise(seed: int = 0) -> VariationalDequantisation:
    """Return the untrained density of a picture's place within its bins."""
    drawn = torch.Generator().manual_seed(seed)
    return VariationalDequantisation(ConvNet(1, 2, 16, generator=drawn), bins=BINS)


class Model(nn.Module):
    """A flow, and where its pictures lie in their bins: evenly spread, or learnt."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.flow = model(name)
        self.noise = learnt_noise() if name == LEARNT else None

    def bits(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Return bits per dimension for one draw, shape (N,): on average an upper bound."""
        if self.noise is None:
            return self.flow.bits_per_dim(
                dequantise(counts, bins=BINS, generator=generator), bins=BINS
            )
        x, log_q = self.noise(counts, generator=generator)
        return bits_per_dim(self.flow.log_prob(x) - log_q, counts[0].numel(), BINS)


@torch.no_grad()
def score(model: Model, counts: Tensor, seed: int = 1, draws: int = DRAWS) -> Tensor:
    """Return the bits per dimension of each picture, the mean over some draws."""
    generator = torch.Generator().manual_seed(seed)
    return sum(model.bits(counts, generator) for _ in range(draws)) / draws


def load(name: str) -> Model:
    """Return a recorded model."""
    found = Model(name)
    state = found.state_dict()
    with np.load(HERE / "coupling_flows.npz") as stored:
        found.load_state_dict(
            {k: torch.from_numpy(stored[f"{name}/{k}"]).to(v.dtype) for k, v in state.items()}
        )
    return found.eval()


def train(name: str, stop: int | None = None) -> tuple[dict[str, Tensor], list[float], int]:
    """Return the best weights by the validation set, in 16 bits, the curve there, and the step.

    With `stop`, only so many steps are made.
    """
    steps, rate = TRAINING["RealNVP" if name == LEARNT else name]
    draw = torch.Generator().manual_seed(0)
    counts, held_out = counts_of("train"), counts_of("validation")
    trained = Model(name)
    trained.flow.initialise(dequantise(counts, bins=BINS, generator=draw))
    # A scale learns its logarithm: NICE's has far to go, and goes faster.
    scales = [p for n, p in trained.named_parameters() if n.endswith("log_scale")]
    rest = [p for n, p in trained.named_parameters() if not n.endswith("log_scale")]
    fast = 10 * rate if name == "NICE" else rate
    groups = [{"params": rest, "lr": rate}, {"params": scales, "lr": fast}]
    optimiser = torch.optim.Adam([g for g in groups if g["params"]])
    rates = [g["lr"] for g in groups if g["params"]]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, steps, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        trained, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    best, curve = (float("inf"), {}, 0), []
    for step in range(1, (stop or steps) + 1):
        chosen = torch.randint(len(counts), (BATCH,), generator=draw)
        loss = trained.bits(counts[chosen], draw).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(trained)
        if step % EVERY == 0:
            now = float(score(average.module, held_out, draws=2).mean())
            curve.append(round(now, 3))
            if now < best[0]:
                best = now, {k: v.clone() for k, v in average.module.state_dict().items()}, step
    return {k: narrow(v) for k, v in best[1].items()}, curve, best[2]


def narrow(values: Tensor) -> Tensor:
    """Return weights in 16 bits, and everything else as it is."""
    return values.half() if values.is_floating_point() else values


def scores(name: str) -> dict[str, float]:
    """Return what a stored model scores on each split, and the standard error."""
    stored, row = load(name), {}
    for split in ("train", "validation", "test"):
        found = score(stored, counts_of(split)).double()
        row[split] = round(float(found.mean()), 4)
        row[f"{split} error"] = round(float(found.std() / len(found) ** 0.5), 4)
    return row


def confirm() -> None:
    """Repeat the first steps and all scores; renew the fingerprint if they are as recorded."""
    path = HERE / "coupling_flows.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for row in record["models"]:
        begins = train(row["name"], stop=2 * EVERY)[1]
        if begins != row["validation curve"][:2]:
            raise SystemExit(f"{row['name']} begins with {begins}, not as recorded: train again")
        again = scores(row["name"])
        if any(row[key] != value for key, value in again.items()):
            raise SystemExit(f"{row['name']} scores {again}, not as recorded: train again")
        print(row["name"], "as recorded", flush=True)
    record["code"] = fingerprint(CODE)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train everything and write the two files; or only confirm them."""
    torch.set_num_threads(1)
    if "--confirm" in sys.argv[1:]:
        confirm()
        return
    begun, origin = time.monotonic(), made_by(CODE)
    weights: dict[str, Any] = {}
    rows = []
    for name in (*TRAINING, LEARNT):
        state, curve, step = train(name)
        weights |= {f"{name}/{k}": v.numpy() for k, v in state.items()}
        np.savez_compressed(HERE / "coupling_flows.npz", **weights)
        stored = load(name)
        row: dict[str, Any] = {"name": name, "step": step, "validation curve": curve}
        row["weights"] = sum(p.numel() for p in stored.parameters())
        row |= scores(name)
        rows.append(row)
        print(row, round((time.monotonic() - begun) / 60, 1), flush=True)
    record = {
        "command": "python -m book.recordings.coupling_flows",
        **origin,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "training": {"batch": BATCH, "draws": DRAWS, "looks every": EVERY},
        "models": rows,
    }
    text = json.dumps(record, indent=1) + "\n"
    (HERE / "coupling_flows.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
