"""Forked children with a time limit: what a mutant does, it does to nobody else."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SURVIVED, KILLED, UNFIT = 0, 1, 3
_MEMORY = 6 << 30  # bytes that a child may ask for beyond what its parent has


@dataclass(frozen=True)
class Job:
    """Something to try in a child: `work` returns SURVIVED, KILLED or UNFIT."""

    key: Hashable
    work: Callable[[], int]
    seconds: float


def outcomes(jobs: Iterable[Job], *, at_once: int) -> Iterator[tuple[Hashable, str]]:
    """Run each job in a forked child; yield (key, `survived` | `killed` | `timeout` | `unfit`).

    A child that dies by a signal was killed by what it ran into, such as a memory limit; one that is
    stopped by its alarm counts as `timeout`.
    """
    words = {SURVIVED: "survived", KILLED: "killed", UNFIT: "unfit"}
    running: dict[int, Hashable] = {}

    def reap() -> tuple[Hashable, str]:
        pid, status = os.wait()
        key = running.pop(pid)
        if os.WIFSIGNALED(status):
            alarm = os.WTERMSIG(status) == signal.SIGALRM
            return key, "timeout" if alarm else "killed"
        return key, words.get(os.WEXITSTATUS(status), "killed")

    for job in jobs:
        while len(running) >= at_once:
            yield reap()
        running[_start(job)] = job.key
    while running:
        yield reap()


def call(work: Callable[[], Any]) -> Any:
    """Run `work` in a child and return what it returns, through a pipe."""
    import pickle

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        gc.freeze()  # the parent's garbage may wait for a thread that does not live here
        status = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status or not content:
        raise RuntimeError(f"a child ended with status {status} before it answered")
    return pickle.loads(content)


def _start(job: Job) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    gc.disable()  # as above; but `swapping` must still see every object
    status = KILLED
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.seconds)
        with contextlib.suppress(ValueError, OSError):
            size = _virtual_memory() + _MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.setpgid(0, 0)  # what it starts dies with it
        status = job.work()
    except BaseException:
        status = KILLED
    finally:
        os._exit(status)


def _virtual_memory() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
