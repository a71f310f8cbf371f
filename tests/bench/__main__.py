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
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # so that `python tests/bench` works as well

from attack import UNITS, attacked
from joining import join
from report import headline, print_bars, print_table
from servers import Finder, Running, Server, Servers
from works import (
    Result,
    beside_stuck,
    converse,
    crowd,
    echo_bulk,
    echo_small,
    flood,
    idle,
)

# The kinds of work, and the figure of each that is drawn as a bar.
FIGURES = {
    "flood": "rate",
    "conversation": "p99",
    "browsers": "cpu",
    "stuck": "cpu",
    "crowd": "cpu",
    "tls": "cpu",
    "attacked": "p99",
    "joining": "cpu",
    "echo-small": "rate",
    "echo-bulk": "rate",
    "idle": "memory",
}
# Seconds beside those that a work itself takes: to start a server, and for each connection.
STARTING = 0.4
CONNECTING = 0.0002


class Scale(NamedTuple):
    """How much of everything is done."""

    seconds: float  # that a work takes with a server
    rounds: int
    listeners: Sequence[tuple[int, int]]  # of a flood, and how many flood them
    rates: Sequence[int]  # of conversations, in lines a second
    crowds: Sequence[int]
    idlers: int
    flooders: Sequence[int]


FULL = Scale(2.0, 5, [(100, 1), (100, 10), (1000, 10)], [1000, 2000], [10_000, 19_000], 8000, [1, 50, 500])
QUICK = Scale(0.4, 1, [(100, 1), (1000, 10)], [1000], [10_000], 1000, [50])


class Trial(NamedTuple):
    """What one contestant is given to do."""

    name: str
    server: Server
    run: Callable[[Running], Result]


class Work(NamedTuple):
    """A kind of work, its particulars, and who does it: first the one that the ratios are of."""

    title: str  # begins with the kind and a colon
    connections: int
    trials: list[Trial]

    @classmethod
    def alike(
        cls,
        title: str,
        connections: int,
        servers: Sequence[Server],
        run: Callable[[Running], Result],
    ) -> Work:
        """Returns one that is the same for all servers."""
        return cls(title, connections, [Trial(server.name, server, run) for server in servers])

    def kind(self) -> str:
        return self.title.partition(":")[0]


def list_works(servers: Servers, scale: Scale) -> Iterator[Work]:
    yield from list_room_works(servers, scale)
    yield from list_joining_works(servers, scale)
    yield from list_echo_works(servers, scale)
    everyone = [server for server in (*servers.rooms, *servers.echoes) if not server.forks]
    run = partial(idle, seconds=scale.seconds, connections=scale.idlers)
    yield Work.alike(f"idle: {scale.idlers:,} connections", scale.idlers, everyone, run)


def list_room_works(servers: Servers, scale: Scale) -> Iterator[Work]:
    seconds, idlers = scale.seconds, scale.idlers
    for listeners, senders in scale.listeners:
        title = f"flood: {listeners:,} listeners, {senders} flooding"
        run = partial(flood, seconds=seconds, listeners=listeners, senders=senders)
        yield Work.alike(title, listeners, servers.rooms, run)
    for rate in scale.rates:
        run = partial(converse, seconds=seconds, talkers=200, rate=rate)
        title = f"conversation: 200 members, {rate:,} lines a second"
        yield Work.alike(title, 200, servers.rooms, run)
    for others in (0, idlers):
        title = f"conversation: 200 of {200 + others:,} members, 100 lines a second"
        run = partial(converse, seconds=seconds, talkers=200, rate=100, idle=others)
        yield Work.alike(title, 200 + others, servers.rooms[:1], run)
    run = partial(flood, seconds=seconds, listeners=100, senders=1)
    yield Work.alike("browsers: 100 listeners, 1 flooding", 100, servers.browsers, run)
    run = partial(flood, seconds=seconds, listeners=100, senders=1, raw=False)
    yield Work.alike("browsers: 100 listeners, 1 browser flooding", 100, servers.browsers, run)
    run = partial(converse, seconds=seconds, talkers=100, rate=1000)
    yield Work.alike("browsers: 100 members, 1,000 lines a second", 100, servers.browsers, run)
    yield stuck_work(servers.rooms[0], seconds)
    yield from list_tls_works(servers, seconds)
    yield from list_attacks(servers, scale)
    for members in scale.crowds:
        run = partial(crowd, seconds=2 * seconds, members=members, rate=5)
        title = f"crowd: {members:,} members, 5 lines a second"
        yield Work.alike(title, members, servers.crowded, run)


def list_tls_works(servers: Servers, seconds: float) -> Iterator[Work]:
    run = partial(converse, seconds=seconds, talkers=500, rate=10)
    yield Work.alike("tls: 500 members, 10 lines a second", 500, servers.tls, run)
    run = partial(flood, seconds=seconds, listeners=1, senders=1)
    yield Work.alike("tls: 1 listener, 1 flooding", 2, servers.tls, run)
    run = partial(converse, seconds=seconds, talkers=2, rate=2000)
    yield Work.alike("tls: 2 members, 2,000 lines a second", 2, servers.tls, run)


def list_attacks(servers: Servers, scale: Scale) -> Iterator[Work]:
    plain, tls = servers.attacked
    for kind in UNITS:
        room = tls if kind == "key updates" else plain
        for flooders in scale.flooders:
            run = partial(attacked, seconds=scale.seconds, kind=kind, flooders=flooders)
            title = f"attacked: 2 who talk, and {flooders:,} who flood: {kind}"
            yield Work.alike(title, flooders, [room], run)


def stuck_work(room: Server, seconds: float) -> Work:
    stuck = 1000
    conversation = {"seconds": seconds, "talkers": 200, "rate": 300}
    return Work(
        f"stuck: 200 members, 300 lines a second, and {stuck:,} who read nothing",
        200 + stuck,
        [
            Trial("beside the stuck", room, partial(beside_stuck, **conversation, stuck=stuck)),
            Trial("without them", room, partial(converse, **conversation)),
            Trial("they read", room, partial(converse, **conversation, idle=stuck)),
        ],
    )


def list_joining_works(servers: Servers, scale: Scale) -> Iterator[Work]:
    rate = 2000
    for way, doors in servers.doors.items():
        run = partial(join, seconds=scale.seconds, rate=rate)
        yield Work.alike(f"joining: {way}, {rate:,} a second", 0, doors, run)


def list_echo_works(servers: Servers, scale: Scale) -> Iterator[Work]:
    seconds, echoes = scale.seconds, servers.echoes
    for connections in (1, 100, 1000):
        run = partial(echo_small, seconds=seconds, connections=connections)
        yield Work.alike(f"echo-small: {connections:,} x 64 bytes", connections, echoes, run)
    for others in (0, scale.idlers):
        title = f"echo-small: 200 of {200 + others:,} connections x 64 bytes"
        run = partial(echo_small, seconds=seconds, connections=200, idle=others)
        one_process = [server for server in echoes if not server.forks]
        yield Work.alike(title, 200 + others, one_process, run)
    for connections, size, name in ((10, 64 * 1024, "64 KiB"), (1, 1024 * 1024, "1 MiB")):
        run = partial(echo_bulk, seconds=seconds, connections=connections, size=size)
        yield Work.alike(f"echo-bulk: {connections} x {name}", connections, echoes, run)


def choose(works: Iterable[Work], wanted: Collection[str], names: Collection[str]) -> list[Work]:
    """Returns the works of the wanted kinds, with the wanted servers beside ours: all of them where
    none is named."""
    kinds = set(wanted) & set(FIGURES) or set(FIGURES)
    peers = set(wanted) & set(names) or set(names)
    return [
        work._replace(trials=[t for t in work.trials if t.server.ours or t.name in peers])
        for work in works
        if work.kind() in kinds
    ]


def duration(works: Iterable[Work], scale: Scale) -> str:
    """Returns about how long the works take."""
    seconds = sum(
        STARTING + scale.seconds + work.connections * CONNECTING
        for work in works
        for trial in work.trials
        if not trial.server.absent
    )
    seconds *= scale.rounds
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def measure(works: Sequence[Work], rounds: int) -> dict[str, dict[str, list[Result]]]:
    """Has every server do every work, in turns, so that all have the same weather."""
    results: dict[str, dict[str, list[Result]]] = {
        work.title: {trial.name: [] for trial in work.trials} for work in works
    }
    for number in range(rounds):
        for work in works:
            for trial in work.trials:
                if trial.server.absent:
                    continue
                progress = f"round {number + 1} of {rounds}, {work.title}, {trial.name}:"
                print(progress, end=" ", file=sys.stderr, flush=True)
                try:
                    with closing(trial.server.start()) as running:
                        result = trial.run(running)
                    results[work.title][trial.name].append(result)
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


def parse_args(argv: Sequence[str] | None, servers: Collection[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures our servers side by side with others that do the same.",
        epilog=f"works: {', '.join(FIGURES)}; servers: {', '.join(servers)}",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*FIGURES, *servers],
        default=[],
        metavar="NAME",
        help="only these works, and only these servers beside ours",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--json", metavar="FILE", help="write every figure of each round to FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    with tempfile.TemporaryDirectory() as directory:
        return run(Finder(directory).servers(), argv)


def run(servers: Servers, argv: Sequence[str] | None) -> int:
    everyone = {
        server.name: server
        for group in (
            servers.rooms,
            servers.echoes,
            servers.browsers,
            servers.tls,
            servers.attacked,
            *servers.doors.values(),
        )
        for server in group
    }
    args = parse_args(argv, everyone)
    scale = QUICK if args.quick else FULL
    works = choose(list_works(servers, scale), args.only, everyone)
    print(f"this takes about {duration(works, scale)}", flush=True)
    absent = {name: server.absent for name, server in everyone.items() if server.absent}
    for name, why in absent.items():
        if any(trial.name == name for work in works for trial in work.trials):
            print(f"{name} is not measured: {why}", flush=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = measure(works, scale.rounds)
    print(f"{machine()}; medians of {scale.rounds} rounds of {scale.seconds:g} s")
    print_table(results, absent)
    print_bars(results, lambda title: FIGURES[title.partition(":")[0]])
    if args.json:
        write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
