"""The Glow on MNIST that the chapter on coupling flows shows.

    python -m book.recordings.coupling_flows_mnist --steps 6000
    torchrun --nproc-per-node 2 -m book.recordings.coupling_flows_mnist --steps 6000
    python -m book.recordings.coupling_flows_mnist --confirm

Trains on the CPU and writes `coupling_flows_mnist.json` (bits per dimension, and what made them) and
`coupling_flows_mnist.npz` (the weights in 16 bits, samples, a walk between digits). All numbers are of
the weights as they are stored. The tests compare the recorded fingerprint with the code as it is now.
Several processes give what one gives, up to the order in which they add.

Where the code has changed but not what it computes (a check at the door, say), `--confirm` repeats the
first steps and all scores, and records the new fingerprint if both come out as recorded.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from book.recordings.origin import made_by
from pkg.algos.coupling_flows import Glow, dequantise
from pkg.algos.coupling_flows.training import Fit, fit, processes
from pkg.data import digits, mnist

HERE = Path(__file__).parent
_FLOWS = "pkg/algos/coupling_flows"
#: The definitions that the results come from; with no names, all of the file.
CODE: dict[str, tuple[str, ...]] = {
    "book/recordings/coupling_flows_mnist.py": (),
    f"{_FLOWS}/training.py": (),
    f"{_FLOWS}/transform.py": ("Transform", "per_sample", "total"),
    f"{_FLOWS}/functional.py": ("log_scales", "affine_coupling", "affine_coupling_inverse"),
    f"{_FLOWS}/couplings.py": ("_Coupling", "AffineCoupling"),
    f"{_FLOWS}/masks.py": ("ChannelMask",),
    f"{_FLOWS}/networks.py": ("draw_weights", "_Conditioner", "ConvNet"),
    f"{_FLOWS}/linear.py": (
        "_along", "_positions", "_logdet", "ActNorm", "Invertible1x1Conv", "Squeeze",
    ),
    f"{_FLOWS}/compose.py": ("Compose", "MultiScale"),
    f"{_FLOWS}/flow.py": ("_Base", "StandardNormal", "Flow", "bits_per_dim"),
    f"{_FLOWS}/models.py": ("Glow", "_check_images", "_glow_coupling"),
    f"{_FLOWS}/pixels.py": ("Logit", "dequantise", "place_in_bin"),
}  # fmt: skip

BATCH, RATE, SEED, BINS, ALPHA = 64, 2e-3, 0, 256, 0.05
SIZES = {"levels": 2, "steps": 8, "hidden": 32}
TEMPERATURES, SAMPLES, PAIRS, STAGES = (0.7, 1.0), 48, 4, 9


# ---------------------------------------------------------------- the model and its data


def model(shape: tuple[int, ...] = (1, 28, 28), seed: int = SEED, **sizes: int) -> Glow:
    """Return the untrained flow."""
    drawn = torch.Generator().manual_seed(seed)
    return Glow(shape, alpha=ALPHA, generator=drawn, **{**SIZES, **sizes})


def stored_model(path: Path | None = None) -> Glow:
    """Return the recorded flow."""
    flow = model()
    with np.load(HERE / "coupling_flows_mnist.npz" if path is None else path) as stored:
        narrow = {
            name.removeprefix("weights/"): torch.from_numpy(stored[name])
            for name in stored
            if name.startswith("weights/")
        }
    state = flow.state_dict()
    flow.load_state_dict({name: narrow[name].to(state[name].dtype) for name in state})
    return flow.eval()


def counts_of(images: Any) -> Tensor:
    """Return pictures as a tensor of counts, (N, 1, H, W), int64."""
    return torch.from_numpy(images.images).long()


@torch.no_grad()
def bits(flow: Glow, counts: Tensor, seed: int = 1) -> Tensor:
    """Return the bits per dimension of each picture, for one draw of its place in its bin."""
    drawn = torch.Generator().manual_seed(seed)
    parts = counts.split(250)
    found = [
        flow.bits_per_dim(dequantise(part, bins=BINS, generator=drawn), bins=BINS) for part in parts
    ]
    return torch.cat(found)


# ---------------------------------------------------------------- record


def scores(flow: Glow) -> dict[str, Any]:
    """Return mean and standard error of bits per dimension: held out, and of what is no digit."""
    test = counts_of(mnist("test"))
    draw = torch.Generator().manual_seed(2)
    shuffled = test[:2000].flatten(1)[:, torch.randperm(784, generator=draw)].view(-1, 1, 28, 28)
    sets = {
        "train": counts_of(mnist("train"))[:2000],
        "test": test,
        "inverted": 255 - test[:2000],
        "shuffled pixels": shuffled,
        "black": torch.zeros(100, 1, 28, 28, dtype=torch.int64),
    }
    told = {}
    for name, counts in sets.items():
        found = bits(flow, counts).double()
        error = float(found.std() / len(found) ** 0.5)
        told[name] = {"bits": round(float(found.mean()), 4), "error": round(error, 4),
                      "pictures": len(found)}  # fmt: skip
    return told


@torch.no_grad()
def pictures(flow: Glow) -> dict[str, Any]:
    """Return samples for each temperature, and walks from one test digit to another, as counts."""
    found = {}
    for place, temperature in enumerate(TEMPERATURES):
        drawn = torch.Generator().manual_seed(10 + place)
        found[f"samples/{temperature}"] = flow.sample(
            SAMPLES, temperature=temperature, generator=drawn
        )
    test = mnist("test")
    ends = [counts_of(test)[np.flatnonzero(test.labels == digit)[0]] for digit in range(2 * PAIRS)]
    x = dequantise(torch.stack(ends), bins=BINS, generator=torch.Generator().manual_seed(3))
    z, _ = flow.transform(x)
    mix = torch.linspace(0, 1, STAGES)[:, None]
    walks = [torch.lerp(z[2 * pair], z[2 * pair + 1], mix) for pair in range(PAIRS)]
    found["walks"] = flow.transform.inverse(torch.cat(walks))[0]
    return {
        name: (x * BINS).floor().clamp(0, 255).to(torch.uint8).squeeze(1).numpy()
        for name, x in found.items()
    }


def write(result: Fit, origin: dict[str, Any], minutes: float, count: int) -> None:
    """Write both files: first the weights, then what was measured with them."""
    path = HERE / "coupling_flows_mnist.npz"
    whole = {name: tensor.half() if tensor.is_floating_point() else tensor
             for name, tensor in result.average.items()}  # fmt: skip
    weights: dict[str, Any] = {f"weights/{name}": t.numpy() for name, t in whole.items()}
    np.savez_compressed(path, **weights)
    flow = stored_model(path)
    weights |= pictures(flow)
    np.savez_compressed(path, **weights)
    pace = max(1, len(result.bits) // 60)
    curve = np.array_split(result.bits, max(1, len(result.bits) // pace))
    record = {
        "command": f"python -m book.recordings.coupling_flows_mnist --steps {result.steps}",
        **origin,
        "machine": f"{platform.machine()}, one core for each of {count} process(es)",
        "minutes": round(minutes, 1),
        "model": {**SIZES, "alpha": ALPHA, "weights": sum(p.numel() for p in flow.parameters())},
        "training": {"batch": BATCH, "lr": RATE, "steps": result.steps,
                     "epochs": round(result.steps * BATCH / 50_000, 2)},
        "scores": scores(flow),
        "curve": {"every": pace, "bits": [round(float(np.mean(part)), 3) for part in curve]},
    }  # fmt: skip
    text = json.dumps(record, indent=1) + "\n"
    (HERE / "coupling_flows_mnist.json").write_text(text, encoding="utf-8")


def confirm() -> None:
    """Record the code as it is now, if its first steps and its scores are those of the record.

    Raises
    ------
    ValueError
        If one of them is not: then the record is of other code, and must be made again.
    """
    path = HERE / "coupling_flows_mnist.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    curve = record["curve"]["bits"]
    steps = -(-record["training"]["steps"] // len(curve))  # those of the curve's first point
    again = fit(model(), counts_of(mnist("train")), bins=BINS, steps=steps, batch=BATCH, lr=RATE,
                seed=SEED)  # fmt: skip
    first = round(float(np.mean(again.bits)), 3)
    if first != curve[0]:
        raise ValueError(f"the first {steps} steps give {first} bits, recorded are {curve[0]}")
    found = scores(stored_model())
    if found != record["scores"]:
        raise ValueError(f"the stored weights score {found}, recorded is {record['scores']}")
    now = made_by(CODE)
    before = record.get("confirmed", {}).get("trained by", record["code"])
    record["confirmed"] = {"trained by": before, "commit": now["commit"], "date": now["date"]}
    record["code"] = now["code"]
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the record; with --out only the weights, for a quick trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many")
    parser.add_argument("--trial", type=Path, help="8 x 8 digits, float64; the weights go here")
    parser.add_argument("--confirm", action="store_true", help="the code changed, not its results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.confirm:
        confirm()
        return
    begun, origin = time.monotonic(), made_by(CODE)

    def watch(step: int, told: float) -> bool:
        minutes = (time.monotonic() - begun) / 60
        if step % 100 == 0:
            print(f"step {step}: {told:.3f} bits per dimension, {minutes:.1f} minutes", flush=True)
        return minutes > options.minutes

    with processes() as (rank, world):
        if options.trial is not None:
            small, images = model((1, 8, 8), steps=2, hidden=8).double(), digits("train")
            result = fit(small, counts_of(images), bins=images.levels, steps=options.steps, batch=32,
                         lr=RATE, seed=SEED)  # fmt: skip
            if rank == 0:
                torch.save({"bits": result.bits, **small.state_dict()}, options.trial)
            return
        counts = counts_of(mnist("train"))
        result = fit(model(), counts, bins=BINS, steps=options.steps, batch=BATCH, lr=RATE,
                     seed=SEED, watch=watch if world == 1 else None)  # fmt: skip
        if rank == 0:
            write(result, origin, (time.monotonic() - begun) / 60, world)


if __name__ == "__main__":
    main()
