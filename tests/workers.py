"""Runs the tests in several processes, because much of their time goes into waiting for others.
pytest alone has no means for it, and is the only package here.

What pytest is to do at the first failure, or with a debugger, it does in one process as always.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing import Pipe, connection
from typing import Any

import pytest

WORKERS = 3
SHARES = 200  # so that nobody has much left to do at the end; each has a number that fits in a byte
ENOUGH = 200  # fewer tests than this aren't worth it
FOR_ONE_PROCESS = ("maxfail", "usepdb", "trace", "collectonly", "setupshow")  # pytest's options


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Has the workers run the tests; returns None where pytest itself is to do so."""
    config = session.config
    if any(config.getoption(option, False) for option in FOR_ONE_PROCESS):
        return None
    if len(session.items) < ENOUGH or session.testsfailed or not hasattr(os, "fork"):
        return None
    config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all
    shares, pen = os.pipe()  # whoever is free reads the number of the next share from it
    os.write(pen, bytes(range(SHARES)))
    os.close(pen)
    workers = dict(start_worker(session, shares) for _ in range(WORKERS))
    os.close(shares)
    try:
        show_all(session, list(workers.values()))
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGTERM)  # where it hasn't ended, we were interrupted
            os.waitpid(pid, 0)
    return True


def share(session: pytest.Session, number: int) -> list[pytest.Item]:
    tests = session.items
    return tests[len(tests) * number // SHARES : len(tests) * (number + 1) // SHARES]


# In a worker


def start_worker(session: pytest.Session, shares: int) -> tuple[int, Any]:
    """Returns a worker's process, and from where its reports come."""
    reader, writer = Pipe(duplex=False)
    pid = os.fork()
    if pid:
        writer.close()
        return pid, reader
    try:
        reader.close()
        signal.signal(signal.SIGINT, lambda *_: None)  # what Ctrl-C means, our parent says
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        Worker(session, writer).run(shares)
    except BaseException:  # noqa: BLE001
        writer.send((-1, traceback.format_exc()))
    finally:
        os._exit(0)


class Worker:
    """Runs tests, and reports as a plugin of pytest what came of them."""

    def __init__(self, session: pytest.Session, pipe: Any) -> None:
        self.session = session
        self.config = session.config
        self.pipe = pipe
        self.reports: list[Any] = []

    def run(self, shares: int) -> None:
        """Runs shares as long as there are some; sends the number and the reports of each."""
        self.set_up_plugins()
        tests = self.tests(shares)
        number, test = next(tests)
        try:
            while test:
                next_number, next_test = next(tests)  # which a fixture may be for as well
                self.config.hook.pytest_runtest_protocol(item=test, nextitem=next_test)
                if number != next_number:
                    self.pipe.send((number, self.reports))
                    self.reports = []
                number, test = next_number, next_test
        finally:
            self.session._setupstate.teardown_exact(None)  # nothing is left, unless interrupted

    def tests(self, shares: int) -> Iterator[tuple[int, pytest.Item | None]]:
        """Yields the shares' numbers and tests as long as there are some, then -1 and None."""
        while number := os.read(shares, 1):
            for test in share(self.session, number[0]):
                yield number[0], test
        yield -1, None

    def set_up_plugins(self) -> None:
        """Only our parent writes to the terminal. And what tests write goes to files, of which each
        worker needs its own."""
        plugins = self.config.pluginmanager
        terminal: Any = plugins.getplugin("terminalreporter")
        if terminal:
            terminal._tw._file = open(os.devnull, "w")  # noqa: SIM115
        capture: Any = plugins.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        plugins.register(self)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(
            self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        )

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        if when == "runtest":
            said = f"{warning_message.category.__name__}: {warning_message.message}"
            self.reports.append((said, warning_message.filename, warning_message.lineno, nodeid))


# In their parent


def show_all(session: pytest.Session, pipes: list[Any]) -> None:
    """Shows pytest the reports in the order of the tests, as they come."""
    came: dict[int, list[Any]] = {}
    shown = 0
    while pipes:
        ready: Any = connection.wait(pipes)
        for pipe in ready:
            try:
                number, reports = pipe.recv()
            except (EOFError, OSError):
                pipes.remove(pipe)
                continue
            if number == -1:
                raise RuntimeError(reports)
            came[number] = reports
        while shown in came:
            show(session, came.pop(shown))
            shown += 1
    if shown < SHARES:
        lost = share(session, shown)[0].nodeid
        raise RuntimeError(f"a process that ran tests has ended, {lost} or one that follows")


def show(session: pytest.Session, reports: list[Any]) -> None:
    """Shows pytest reports, and warnings, as if they were of this process."""
    config, hook = session.config, session.config.hook
    for one in reports:
        if isinstance(one, tuple):
            said, file, line, nodeid = one
            warning = warnings.WarningMessage(Warning(said), Warning, file, line)
            given = {"warning_message": warning, "when": "runtest", "nodeid": nodeid}
            hook.pytest_warning_recorded.call_historic(kwargs={**given, "location": None})
            continue
        report = hook.pytest_report_from_serializable(config=config, data=one)
        test = {"nodeid": report.nodeid, "location": report.location}
        if report.when == "setup":
            hook.pytest_runtest_logstart(**test)
        hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            hook.pytest_runtest_logfinish(**test)
    if session.shouldfail or session.shouldstop:
        raise session.Interrupted(session.shouldfail or session.shouldstop)
