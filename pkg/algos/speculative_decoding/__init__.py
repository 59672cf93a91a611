"""Speculative decoding: verify drafts so that the text follows the target's law exactly.

`verify_chain` and `verify_tree` decide which draft tokens stay and draw one more;
`acceptance_probability` and `residual` are their two formulas, `log_residual` the second one in
logarithms; `expected_tokens`, `token_distribution`, `walltime_improvement`, `operations_factor` and
`best_gamma` say what is gained. `chain_law`, `tree_law` and `total_variation` compute what a
verification emits, exactly. `verify_chain_logits`, `verify_tree_logits` and `sample_logits` start from
logits and have kernels. `speculative_generate` decodes a text with one of the drafters.

The chapter "Speculative decoding" derives each of them and compares it with this code.
"""

from pkg.algos.speculative_decoding.chain import verify_chain
from pkg.algos.speculative_decoding.drafters import (
    DistilledDrafter,
    EarlyExitDrafter,
    ModelDrafter,
)
from pkg.algos.speculative_decoding.drafts import Draft, Drafter, Options
from pkg.algos.speculative_decoding.exact import chain_law, total_variation, tree_law
from pkg.algos.speculative_decoding.gains import (
    best_gamma,
    expected_tokens,
    operations_factor,
    token_distribution,
    walltime_improvement,
)
from pkg.algos.speculative_decoding.generate import Speculation, speculative_generate
from pkg.algos.speculative_decoding.laws import acceptance_probability, log_residual, residual
from pkg.algos.speculative_decoding.logits import (
    sample_logits,
    verify_chain_logits,
    verify_tree_logits,
)
from pkg.algos.speculative_decoding.lookup import PromptLookupDrafter, RetrievalDrafter
from pkg.algos.speculative_decoding.result import VerifyResult
from pkg.algos.speculative_decoding.tree import verify_tree

#: Results: they carry numbers, and compute none.
RESULTS = ("Draft", "Drafter", "Options", "Speculation", "VerifyResult")

__all__ = [
    "DistilledDrafter",
    "Draft",
    "Drafter",
    "EarlyExitDrafter",
    "ModelDrafter",
    "Options",
    "PromptLookupDrafter",
    "RetrievalDrafter",
    "Speculation",
    "VerifyResult",
    "acceptance_probability",
    "best_gamma",
    "chain_law",
    "expected_tokens",
    "log_residual",
    "operations_factor",
    "residual",
    "sample_logits",
    "speculative_generate",
    "token_distribution",
    "total_variation",
    "tree_law",
    "verify_chain",
    "verify_chain_logits",
    "verify_tree",
    "verify_tree_logits",
    "walltime_improvement",
]
