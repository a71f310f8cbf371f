"""Reads what a room sends, by README's protocol table alone: its rows are the grammar.

Written apart from the server's own words, so that the two can disagree.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from support import ROOT

README = (ROOT / "README.md").read_text("utf-8")
ROWS = README.partition("| **the room sends** ")[2].partition("\n\n")[0]
RULE = re.search(r"room's own\s+words, .*?: (.*?);", README, re.DOTALL)
assert RULE
WORDS = re.findall("`(.+?)`", " ".join(RULE[1].split()))  # that are no part of a name

# Any text that has none of these words in it, and none of the signs of an explanation.
NAME = rf"(?!(?i:to)\b)(?:(?!\b(?i:{'|'.join(WORDS)})\b)[^,:;/()])+"
VALUES = {
    "NAMES": f"(?P<names>{NAME}(?:, {NAME})*(?:, [0-9]+ more)?)",
    "NAME": f"({NAME})",
    "N": "[0-9]+",
    "TEXT": ".*",
}


def pattern(form: str) -> re.Pattern[str]:
    """Returns what matches the lines of a form, which has its values in capitals."""
    pieces = re.split(rf"\b({'|'.join(VALUES)})\b", form)
    return re.compile("".join(VALUES.get(piece, re.escape(piece)) for piece in pieces))


FORMS = {form: pattern(form) for form in re.findall(r"`(\* [^`]+|NAME [^`]+)`", ROWS)}
EXPLANATION = "an explanation"


class Reading(NamedTuple):
    """What a line means: its form, as it stands in the table, and the names that are in it."""

    form: str
    names: tuple[str, ...] = ()


def readings(line: str) -> list[Reading]:
    """Returns all ways in which a line can be read; none if it is what a member said."""
    found: list[Reading] = []
    if not line.startswith("* ") and "(" not in line:  # most lines
        return found
    for form, pattern in FORMS.items():
        if match := pattern.fullmatch(line):
            is_list = "names" in pattern.groupindex
            names = match["names"].split(", ") if is_list else match.groups()
            found.append(Reading(form, tuple(one for one in names if not one.endswith(" more"))))
    if not found and line.startswith("* ") and re.search("[,:;]", line):
        found.append(Reading(EXPLANATION))
    return found


def read(line: str) -> Reading | None:
    """Returns what a line of the room means, None for what a member said."""
    found = readings(line)
    assert len(found) == 1 or not (found or line.startswith("* ")), f"{found}: {line!r}"
    return found[0] if found else None
