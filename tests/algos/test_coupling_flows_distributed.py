"""Training that outgrows one machine: two processes under torchrun give the parameters of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pkg.algos.coupling_flows import Glow, dequantise
from pkg.algos.coupling_flows.training import fit

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ["-m", "book.recordings.coupling_flows_mnist", "--steps", "4", "--trial"]


def run(command, path):
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, *PROGRAM, str(path)], cwd=ROOT, env=environment, check=True,
        timeout=300, capture_output=True,
    )  # fmt: skip
    return torch.load(path, weights_only=True)


def test_two_processes_give_the_parameters_of_one(tmp_path):
    """The same program, unchanged, in float64: the halves of a batch add in another order."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone, both = run([], tmp_path / "one.pt"), run(launcher, tmp_path / "two.pt")
    assert alone.keys() == both.keys()
    assert len(alone["bits"]) == 4
    assert len(set(alone["bits"])) == 4  # something was learnt
    for step, (mine, theirs) in enumerate(zip(alone["bits"], both["bits"], strict=True)):
        assert abs(mine - theirs) < 1e-10, step
    begun = begin().state_dict()
    for name in alone.keys() - {"bits"}:
        # Adam divides a gradient by its own size: where that is 1e-4 of the largest, a rounding of
        # 1e-16 becomes 1e-12 of a step; four steps of 2e-3 at most, with some room.
        torch.testing.assert_close(alone[name], both[name], rtol=0, atol=1e-9)
        if begun[name].is_floating_point() and "weight" in name:
            assert not torch.equal(alone[name], begun[name])


def begin():
    from book.recordings.coupling_flows_mnist import model

    return model((1, 8, 8), steps=2, hidden=8).double()


# ---------------------------------------------------------------- the loop itself


def small():
    return Glow((1, 4, 4), levels=1, steps=2, hidden=4, generator=torch.Generator().manual_seed(0))


def counts(number=40):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 4, (number, 1, 4, 4), generator=draw) // 2  # only 0 and 1 of four


def test_training_lowers_the_bits_and_repeats_itself():
    given = {"bins": 4, "batch": 8, "lr": 2e-2, "seed": 3, "warm_up": 5}
    result, again = (fit(small(), counts(), steps=steps, **given) for steps in (60, 5))
    assert result.steps == 60
    assert result.bits[:5] == again.bits
    first, last = (sum(result.bits[i : i + 10]) / 10 for i in (0, 50))
    # Four values cost 2 bits each; those that occur are a fair coin, which costs 1 on new samples.
    assert 0.9 < last < first - 0.05


def test_the_average_is_that_of_the_weights_seen():
    flow, seen = small(), []

    def watch(step, bits):
        seen.append([p.detach().clone() for p in flow.parameters()])
        return step == 3

    result = fit(
        flow, counts(), bins=4, steps=99, batch=8, lr=5e-3, seed=3, momentum=0.5, watch=watch
    )
    assert result.steps == 3
    for place, (name, _) in enumerate(flow.named_parameters()):
        first, second, third = (weights[place] for weights in seen)
        mean = (first + 2 * second + 4 * third) / 7
        torch.testing.assert_close(result.average[name], mean, rtol=1e-6, atol=1e-6)
    assert result.average.keys() == flow.state_dict().keys()


def first_step(**options):
    """Return the largest change of a weight in the first step."""
    flow, seen = small(), []
    flow.initialise(dequantise(counts(), bins=4))
    given = {"bins": 4, "steps": 1, "batch": 8, "lr": 1e-2, "seed": 3} | options

    def watch(step, bits):
        seen.append([p.detach().clone() for p in flow.parameters()])

    # the first batch sets the weights of ActNorm; the step is what happens after that
    before = fit(flow, counts(), **given | {"lr": 1e-12}).average
    named = dict(flow.named_parameters())
    old = {name: tensor.clone() for name, tensor in before.items() if name in named}
    fit(flow, counts(), watch=watch, **given)
    return max(float((named[n].detach() - old[n]).abs().max()) for n in old)


def test_the_rate_rises_from_its_hundredth_part():
    """Adam's first step is as long as its rate, whatever the gradient."""
    assert first_step() == pytest.approx(1e-2 / 100, rel=2e-3)
    assert first_step(warm_up=1) == pytest.approx(1e-2, rel=2e-3)
    assert first_step(warm_up=4) == pytest.approx(1e-2 / 4, rel=2e-3)


def test_a_gradient_is_cut_to_its_largest_norm():
    """Cut to 1e-12, it vanishes beside the 1e-8 that Adam adds to its size."""
    assert first_step(clip=1e-12, warm_up=1) < 1e-5


def test_by_default_a_gradient_is_cut_to_a_hundred_nats(monkeypatch):
    from pkg.algos.coupling_flows import training

    seen = []
    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", lambda p, most: seen.append(most))
    fit(small(), counts(), bins=4, steps=2, batch=8, lr=1e-3, seed=0)
    assert seen == [100.0, 100.0]


def test_the_average_goes_back_a_thousand_steps():
    flow, seen = small(), []
    watch = lambda step, bits: seen.append([p.detach().clone() for p in flow.parameters()])  # noqa: E731
    result = fit(flow, counts(), bins=4, steps=3, batch=8, lr=5e-2, seed=3, warm_up=1, watch=watch)
    for place, (name, _) in enumerate(flow.named_parameters()):
        first, second, third = (weights[place].double() for weights in seen)
        share = [0.999**2, 0.999, 1.0]
        mean = (share[0] * first + share[1] * second + share[2] * third) / sum(share)
        # float32 sums of three parts of a thousandth each
        torch.testing.assert_close(result.average[name].double(), mean, rtol=1e-4, atol=1e-5)


def test_each_epoch_sees_every_sample_once():
    from pkg.algos.coupling_flows.training import _batches

    numbers = torch.arange(24).view(24, 1)
    batches = _batches(numbers, 24, 8, 0, torch.zeros(1, dtype=torch.float64))
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    drawn = [(24 * epoch).floor().long().flatten().tolist() for epoch in epochs]
    assert [sorted(order) for order in drawn] == [list(range(24))] * 2
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 41}, "at least a batch of 41, got 40"),
        ({"bins": 1}, "bins"),
        ({"lr": -1.0}, "lr"),
        ({"warm_up": 0}, "warm_up"),
        ({"batch": 0}, "batch"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    given = {"bins": 4, "steps": 2, "batch": 8, "lr": 1e-3, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        fit(small(), counts(), **given)
    with pytest.raises(TypeError, match="counts"):
        fit(
            small(),
            counts().float(),
            **({"bins": 4, "steps": 2, "batch": 8, "lr": 1e-3, "seed": 0}),
        )


def test_a_loss_that_is_no_number_ends_the_training():
    flow = small()

    def break_it(step, bits):
        with torch.no_grad():
            next(flow.parameters()).fill_(torch.nan)

    with pytest.raises(ValueError, match="step 2"):
        fit(flow, counts(), bins=4, steps=5, batch=8, lr=1e-3, seed=0, watch=break_it)


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    from pkg.algos.coupling_flows import training

    monkeypatch.setattr(training.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(training.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 8"):
        fit(small(), counts(), bins=4, steps=1, batch=8, lr=1e-3, seed=0)


def test_a_batch_that_can_be_divided_is_taken(monkeypatch):
    from pkg.algos.coupling_flows import training

    for name, value in (("is_initialized", True), ("get_world_size", 3), ("get_rank", 2)):
        monkeypatch.setattr(training.distributed, name, lambda value=value: value)
    assert training._place(9) == (2, 3)
    monkeypatch.setattr(training.distributed, "is_initialized", lambda: False)
    assert training._place(8) == (0, 1)


def test_losses_are_averaged_over_the_processes(monkeypatch):
    from pkg.algos.coupling_flows import training

    monkeypatch.setattr(training.distributed, "all_reduce", lambda loss: loss.mul_(5))
    assert training._mean(torch.tensor(3.0), 5) == 3.0  # five processes that all lost 3
    assert training._mean(torch.tensor(3.0), 1) == 3.0


def test_without_torchrun_there_is_one_process(monkeypatch):
    from pkg.algos.coupling_flows import training

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with training.processes() as found:
        assert found == (0, 1)
