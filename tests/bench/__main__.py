"""Measures our servers side by side with others that do the same: python -m tests.bench

It starts every server that it finds, gives all of them the same work in turns, and prints a table.
Linux only: CPU times and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # so that `python tests/bench` works as well

from report import headline, print_bars, print_table
from servers import Running, Server, find_servers
from works import Result, converse, echo_bulk, echo_small, flood, idle

# The kinds of work, and the figure of each that is drawn as a bar.
FIGURES = {
    "flood": "rate",
    "conversation": "p99",
    "echo-small": "rate",
    "echo-bulk": "rate",
    "idle": "memory",
}
FULL = (2.0, 3, 8000)  # seconds that a work takes with a server, rounds, idle connections
QUICK = (0.5, 1, 1000)


class Work(NamedTuple):
    """A kind of work, its particulars, and who is given it."""

    title: str  # begins with the kind and a colon
    servers: Sequence[Server]
    run: Callable[[Running], Result]

    def kind(self) -> str:
        return self.title.partition(":")[0]


def list_works(
    rooms: Sequence[Server], echoes: Sequence[Server], seconds: float, idlers: int
) -> list[Work]:
    """Returns all works, each of which takes about so many seconds with each server."""
    works = []
    for listeners, senders in ((100, 1), (100, 10), (1000, 10)):
        title = f"flood: {listeners:,} listeners, {senders} flooding"
        run = partial(flood, seconds=seconds, listeners=listeners, senders=senders)
        works.append(Work(title, rooms, run))
    for rate in (1000, 2000):
        run = partial(converse, seconds=seconds, talkers=200, rate=rate)
        title = f"conversation: 200 members, {rate:,} lines a second"
        works.append(Work(title, rooms, run))
    for others in (0, idlers):
        title = f"conversation: 200 of {200 + others:,} members, 100 lines a second"
        run = partial(converse, seconds=seconds, talkers=200, rate=100, idle=others)
        works.append(Work(title, rooms[:1], run))
    for connections in (1, 100, 1000):
        run = partial(echo_small, seconds=seconds, connections=connections)
        works.append(Work(f"echo-small: {connections:,} x 64 bytes", echoes, run))
    for others in (0, idlers):
        title = f"echo-small: 200 of {200 + others:,} connections x 64 bytes"
        run = partial(echo_small, seconds=seconds, connections=200, idle=others)
        works.append(Work(title, [server for server in echoes if not server.forks], run))
    for connections, size, title in ((10, 64 * 1024, "64 KiB"), (1, 1024 * 1024, "1 MiB")):
        run = partial(echo_bulk, seconds=seconds, connections=connections, size=size)
        works.append(Work(f"echo-bulk: {connections} x {title}", echoes, run))
    run = partial(idle, seconds=seconds, connections=idlers)
    everyone = [server for server in (*rooms, *echoes) if not server.forks]
    works.append(Work(f"idle: {idlers:,} connections", everyone, run))
    return works


def measure(works: Sequence[Work], rounds: int) -> dict[str, dict[str, list[Result]]]:
    """Has every server do every work, in turns, so that all have the same weather."""
    results: dict[str, dict[str, list[Result]]] = {
        work.title: {server.name: [] for server in work.servers} for work in works
    }
    for number in range(rounds):
        for work in works:
            for server in work.servers:
                progress = f"round {number + 1} of {rounds}, {work.title}, {server.name}:"
                print(progress, end=" ", file=sys.stderr, flush=True)
                try:
                    with closing(server.start()) as running:
                        result = work.run(running)
                    results[work.title][server.name].append(result)
                    print(headline(result), file=sys.stderr)
                except (OSError, RuntimeError) as error:
                    print(f"failed: {error}", file=sys.stderr)
    return results


def write_json(path: str, results: dict[str, dict[str, list[Result]]]) -> None:
    figures = {
        title: {name: [asdict(one) for one in rounds] for name, rounds in by_server.items()}
        for title, by_server in results.items()
    }
    Path(path).write_text(json.dumps({"machine": machine(), "works": figures}, indent=1) + "\n")


def machine() -> str:
    """Returns a line about this machine."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.partition(":")[2].split())
            break
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{os.cpu_count()} cores of {model}, {system}, Python {platform.python_version()}"


def parse_args(
    argv: Sequence[str] | None, works: Sequence[str], servers: Sequence[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures our servers side by side with others that do the same.",
        epilog=f"works: {', '.join(works)}; servers: {', '.join(servers)}",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*works, *servers],
        default=[],
        metavar="NAME",
        help="only these works, and only these servers beside ours",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--json", metavar="FILE", help="write every figure of each round to FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    rooms, echoes, missing = find_servers()
    names = list(dict.fromkeys(server.name for server in (*rooms, *echoes)))
    args = parse_args(argv, list(FIGURES), names)
    wanted = {rooms[0].name, echoes[0].name, *(set(args.only) & set(names) or names)}
    rooms = [server for server in rooms if server.name in wanted]
    echoes = [server for server in echoes if server.name in wanted]
    seconds, rounds, idlers = QUICK if args.quick else FULL
    works = list_works(rooms, echoes, seconds, idlers)
    kinds = set(args.only) & set(FIGURES) or FIGURES
    works = [work for work in works if work.kind() in kinds]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if missing:
        print(f"not found, so not measured: {', '.join(missing)}", file=sys.stderr)
    results = measure(works, rounds)
    print(f"{machine()}; medians of {rounds} rounds of {seconds:g} s")
    print_table(results)
    print_bars(results, lambda title: FIGURES[title.partition(":")[0]])
    if args.json:
        write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
