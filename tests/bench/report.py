"""Prints results: one table, and a bar for each server."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Mapping, Sequence  # those that Python 3.8 can subscript when it runs

from works import Result

BAR_WIDTH = 46
NAME_WIDTH = 18

# What is shown of a server's results, in which unit, and whether it is compared with ours.
COLUMNS = (("rate", "/s", True), ("cpu", "s", True), ("p50", "s", False), ("p99", "s", True),
           ("memory", "B", True))  # fmt: skip
HEADINGS = f"{'':{NAME_WIDTH}}       rate  ours    CPU/msg  ours       p50       p99  ours"
HEADINGS += "    memory  ours   lost   late  load"
LEGEND = """\
ours: the figure of the first line divided by this one's (median of the rounds). CPU/msg: the
server's CPU time for a message that arrives, or for a newcomer; of idle connections, for a second.
memory: at most; in a crowd, of newcomers and of idle connections, for each. p50, p99: the delay of
a message, or of a newcomer's welcome. lost: messages, or connections refused or cut off, in all
rounds; late: not arrived when time was up. load: how busy the load generator was; where there is a
"!", it may have been the limit, and the rate not the server's."""
BUSY = 0.9  # the share of a core from which on the load may be the limit

Rounds = Sequence[Result]
ByServer = Mapping[str, Rounds]  # ours first


def scaled(value: float, unit: str) -> str:
    """Returns 81.2 M/s, 11.8 ns: three digits and a prefix. What is below 0, such as memory that a
    server has given back meanwhile, is 0."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1), ("m", 1e-3), ("µ", 1e-6)):
        if value >= factor:
            return f"{digits(value / factor)} {prefix}{unit}"
    return f"{digits(value / 1e-9)} n{unit}" if value > 0 else f"0 {unit}"


def digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def count(number: int) -> str:
    return str(number) if number < 10_000 else scaled(number, "").replace(" ", "")


def values(rounds: Rounds, field: str) -> list[float]:
    return [getattr(one, field) for one in rounds if getattr(one, field) is not None]


def ratio(ours: Rounds, theirs: Rounds, field: str) -> str:
    """Returns the median of our figure divided by theirs, round by round."""
    if ours is theirs:
        return ""
    pairs = zip(values(ours, field), values(theirs, field))
    ratios = [one / other for one, other in pairs if other]
    return f"{digits(median(ratios))}x" if ratios else ""


def headline(result: Result) -> str:
    """Returns a few words about one result, to be shown as progress."""
    if result.rate == 0:
        return f"nothing arrived, {result.lost + result.late:,} were due"
    rate = scaled(result.rate, "/s") if result.rate else ""
    memory = scaled(result.memory, "B") if result.memory else ""
    lost = f", {result.lost:,} lost" if result.lost else ""
    return f"{rate or memory}{lost}{f', {result.late:,} late' if result.late else ''}"


def print_table(results: Mapping[str, ByServer], absent: Mapping[str, str]) -> None:
    """`absent` says of servers why they weren't measured."""
    print(f"\n{HEADINGS}")
    for title, by_server in results.items():
        print(title)
        ours = next(iter(by_server.values()))
        for name, rounds in by_server.items():
            cells = row(ours, rounds) if rounds else f"  {absent.get(name, 'failed')}"
            print(f"  {name:{NAME_WIDTH - 2}}{cells}")
    print(f"\n{LEGEND}")


def row(ours: Rounds, rounds: Rounds) -> str:
    cells = []
    for field, unit, compared in COLUMNS:
        found = values(rounds, field)
        cells.append(f"{scaled(median(found), unit) if found else '':>10}")
        if compared:
            cells.append(f"{ratio(ours, rounds, field):>6}")
    lost = sum(one.lost for one in rounds)
    late = sum(one.late for one in rounds)
    busy = max(one.busy for one in rounds)
    return f"{' '.join(cells)} {count(lost):>6} {count(late):>6} {busy:>5.0%}{'!' * (busy > BUSY)}"


def print_bars(results: Mapping[str, ByServer], field: Callable[[str], str]) -> None:
    """Prints a bar chart for each title, of the field that counts there."""
    units = {name: unit for name, unit, _ in COLUMNS}
    for title, by_server in results.items():
        name = field(title)
        print(f"\n{title}: {name}")
        figures = {
            who: median(values(rounds, name))
            for who, rounds in by_server.items()
            if values(rounds, name)
        }
        longest = max(figures.values(), default=0) or 1
        for who, figure in figures.items():
            bar = "█" * max(1, round(BAR_WIDTH * figure / longest)) if figure else ""
            print(f"  {who:{NAME_WIDTH - 2}} {bar} {scaled(figure, units[name])}")
