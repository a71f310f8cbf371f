"""Runs the tests in several processes, because most of their time goes into waiting for others: on
two cores that takes 80 s instead of 150. pytest alone has no means for it, and is the only package
here.

What pytest is to do at the first failure, or with a debugger, it does in one process as always.
"""

from __future__ import annotations

import json
import os
import selectors
from collections.abc import Iterator
from typing import BinaryIO, TextIO

import pytest

WORKERS = 3
SHARES = 200  # so that nobody has much left to do at the end; each has a number that fits in a byte
ENOUGH = 200  # fewer tests than this aren't worth it


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Has the workers run the tests; returns None where pytest itself is to do so."""
    option = session.config.option
    if len(session.items) < ENOUGH or option.maxfail or option.usepdb or option.collectonly:
        return None
    if session.testsfailed or not hasattr(os, "fork"):
        return None
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all
    shares, pen = os.pipe()  # whoever is free reads the number of the next share from it
    os.write(pen, bytes(range(SHARES)))
    os.close(pen)
    workers = [start_worker(session, shares) for _ in range(WORKERS)]
    os.close(shares)
    done = show_reports(session, [reports for _, reports in workers])
    for pid, reports in workers:
        reports.close()
        os.waitpid(pid, 0)
    if done != SHARES:
        raise session.Failed(f"{SHARES - done} of {SHARES} shares of the tests were not run")
    return True


def start_worker(session: pytest.Session, shares: int) -> tuple[int, BinaryIO]:
    """Returns a worker's process, and the pipe with its reports."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, os.fdopen(reader, "rb")
    try:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            run_shares(session, shares, pipe)
    finally:
        os._exit(0)


def run_shares(session: pytest.Session, shares: int, pipe: TextIO) -> None:
    """Runs shares as long as there are some; writes the reports of each into the pipe, as a line."""
    config, reports = session.config, []

    class Reporter:
        @staticmethod
        def pytest_runtest_logreport(report: pytest.TestReport) -> None:
            as_json = config.hook.pytest_report_to_serializable(config=config, report=report)
            reports.append(as_json)

    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(Reporter())
    tests = tests_of(session, shares)
    share, test = next(tests)
    while test:
        following_share, following = next(tests)  # which a fixture may be for as well
        config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        if share != following_share:
            print(json.dumps(reports), file=pipe, flush=True)
            reports.clear()
        share, test = following_share, following


def tests_of(session: pytest.Session, shares: int) -> Iterator[tuple[int, pytest.Item | None]]:
    """Yields the numbers and the tests of shares as long as there are some, then -1 and None."""
    tests = session.items
    number = os.read(shares, 1)
    while number:
        share = number[0]
        for test in tests[len(tests) * share // SHARES : len(tests) * (share + 1) // SHARES]:
            yield share, test
        number = os.read(shares, 1)
    yield -1, None


def show_reports(session: pytest.Session, pipes: list[BinaryIO]) -> int:
    """Shows pytest the workers' reports as they come; returns how many shares were reported."""
    config, done = session.config, 0
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if not line:
                    selector.unregister(key.fileobj)
                    continue
                done += 1
                for as_json in json.loads(line):
                    report = config.hook.pytest_report_from_serializable(
                        config=config, data=as_json
                    )
                    if report.when == "setup":
                        config.hook.pytest_runtest_logstart(
                            nodeid=report.nodeid, location=report.location
                        )
                    config.hook.pytest_runtest_logreport(report=report)
    return done
