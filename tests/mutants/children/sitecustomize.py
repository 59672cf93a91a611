"""Runs when a Python starts that a measured or a mutant's process has started.

It is measured too, or gets the same mutant. `tests.mutants.swapping.pass_on` and `watch` put this
folder on the path of such processes.
"""

import atexit
import os
import sys

if "CHECKED_LINES" in os.environ:
    import coverage

    recorder = coverage.Coverage(
        data_file=f"{os.environ['CHECKED_LINES']}/{os.getpid()}",
        include=os.environ["CHECKED_FILES"].split(os.pathsep),
        context=os.environ.get("CHECKED_PART"),
        config_file=False,
    )
    recorder.start()

    def finish() -> None:
        """Keep what was measured."""
        recorder.stop()
        recorder.save()

    atexit.register(finish)

if "CHECKED_MUTANT" in os.environ:
    root = os.environ["CHECKED_ROOT"]
    if root not in sys.path:
        sys.path.insert(0, root)
    from tests.mutants.swapping import Importing, received

    Importing(*received()).install()
