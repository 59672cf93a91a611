"""Flow matching and rectified flow: learn a velocity, then follow it from noise to data.

A path says where a sample is on its way from noise (t = 0) to data (t = 1): `GaussianPath` and its
cases. A velocity is learnt from it with `conditional_flow_matching_loss` and followed with
`integrate`; `ContinuousFlow` makes a density of it, with a likelihood. `reflow` straightens it.

The chapter "Flow matching and rectified flow" derives each of them and compares it with this code.
"""

from pkg.algos.rectified_flow.continuous import (
    ContinuousFlow,
    divergence,
    draw_probes,
    hutchinson_variance,
)
from pkg.algos.rectified_flow.coupling import (
    assignment_coupling,
    minibatch_coupling,
    sinkhorn_plan,
    transport_cost,
)
from pkg.algos.rectified_flow.distance import projections, sliced_wasserstein
from pkg.algos.rectified_flow.fused import draw_path
from pkg.algos.rectified_flow.losses import (
    conditional_flow_matching_loss,
    flow_matching_loss,
    marginal_velocity,
)
from pkg.algos.rectified_flow.networks import VelocityMLP, time_features
from pkg.algos.rectified_flow.paths import (
    Coefficients,
    GaussianPath,
    LinearPath,
    OptimalTransportPath,
    PathSample,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from pkg.algos.rectified_flow.sampler import guided_step, sample_fixed
from pkg.algos.rectified_flow.solvers import Solver, integrate
from pkg.algos.rectified_flow.straight import reflow, straightness
from pkg.algos.rectified_flow.times import LogitNormalTime, UniformTime, reverse_time

#: Results and settings: they carry what the functions computed or are told, and compute nothing.
RESULTS = ("Coefficients", "PathSample", "Solver")

__all__ = [
    "Coefficients",
    "ContinuousFlow",
    "GaussianPath",
    "LinearPath",
    "LogitNormalTime",
    "OptimalTransportPath",
    "PathSample",
    "Solver",
    "UniformTime",
    "VarianceExplodingPath",
    "VariancePreservingPath",
    "VelocityMLP",
    "assignment_coupling",
    "conditional_flow_matching_loss",
    "divergence",
    "draw_path",
    "draw_probes",
    "flow_matching_loss",
    "guided_step",
    "hutchinson_variance",
    "integrate",
    "marginal_velocity",
    "minibatch_coupling",
    "projections",
    "reflow",
    "reverse_time",
    "sample_fixed",
    "sinkhorn_plan",
    "sliced_wasserstein",
    "straightness",
    "time_features",
    "transport_cost",
]
