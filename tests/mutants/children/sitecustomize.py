"""Runs when a Python starts that a mutant's process has started: it gets the same mutant.

`tests.mutants.swapping.pass_on` puts this folder on the path of such processes.
"""

import os
import sys

if "CHECKED_MUTANT" in os.environ:
    root = os.environ["CHECKED_ROOT"]
    if root not in sys.path:
        sys.path.insert(0, root)
    from tests.mutants.swapping import Importing, received

    Importing(*received()).install()
