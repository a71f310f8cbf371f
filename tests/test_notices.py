"""What a room says can be read in one way alone, by the grammar that README's protocol table is."""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Iterable, Iterator

import pytest
from notices import EXPLANATION, FORMS, WORDS, readings
from support import ROOT
from test_room import Hall

import chat_server

# Which argument of a call, in the server's source, is what the room says.
SAYING = {"notice": 0, "announce": 0, "Dismissed": 0, "tell": 1, "map": 1, "guard": 2}
SAYING["make_room"] = 3
HOW = ["left", "was removed"]  # somebody leaves
ANYTHING = ["Ann", "7"]  # for what the source doesn't tell


def called(node: ast.AST) -> str:
    """Returns the name of what a name or an attribute is."""
    return str(getattr(node, "id", getattr(node, "attr", "")))


def is_of_attribute(node: ast.AST) -> bool:
    """Says whether something is assigned to an attribute."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)


class Source:
    """The server's source, and what it can say."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.known: dict[str, list[ast.expr]] = {}  # what is assigned to names and attributes
        self.notices = set(self.find())

    def find(self) -> Iterator[str]:
        """Goes through the functions, each of which has its own names."""
        everything = list(ast.walk(self.tree))
        self.learn(one for one in everything if one in self.tree.body or is_of_attribute(one))
        everywhere = self.known
        for function in everything:
            if isinstance(function, ast.FunctionDef):
                self.known = dict(everywhere)
                self.learn(ast.walk(function))
                for node in ast.walk(function):
                    if isinstance(node, ast.Call):
                        at = SAYING.get(called(node.func), len(node.args))
                        for said in node.args[at : at + 1]:
                            yield from filter(None, self.texts(said))

    def learn(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, ast.Assign):
                name = called(node.targets[0])
                self.known[name] = [*self.known.get(name, ()), node.value]

    def texts(self, node: ast.expr) -> list[str]:
        """Returns the texts that an expression can be; none if it is none in itself."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.FormattedValue):
            some = HOW if called(node.value) == "how" else self.texts(node.value)
            return [text for text in some if text] or ANYTHING
        if isinstance(node, ast.JoinedStr):
            return ["".join(parts) for parts in itertools.product(*map(self.texts, node.values))]
        if isinstance(node, ast.IfExp):
            return self.texts(node.body) + self.texts(node.orelse)
        if isinstance(node, ast.Tuple):
            return [text for one in node.elts for text in self.texts(one)]
        given = self.known.pop(called(node), [])  # a name can't stand for itself
        found = [text for one in given for text in self.texts(one)]
        self.known[called(node)] = given
        return found


def test_every_notice_of_the_source_is_in_readmes_table() -> None:
    """Also the other way round: but how many are unnamed is put together elsewhere."""
    said = Source((ROOT / "chat_server.py").read_text("utf-8")).notices
    assert len(said) > 40
    found = {text: readings(f"* {text}") for text in said}
    assert not {text: ways for text, ways in found.items() if len(ways) != 1}
    forms = {ways[0].form for ways in found.values()}
    elsewhere = {"* here: N unnamed", "* here: NAMES and N unnamed", "NAME (private): TEXT"}
    assert forms == {*FORMS, EXPLANATION} - elsewhere


@pytest.mark.parametrize("word", [*WORDS, "to"])
def test_the_rooms_own_words_are_no_part_of_a_name(word: str) -> None:
    for name in (word, f"{word} Ann", f"{word.upper()} Ann"):
        with pytest.raises(ValueError, match="only the room says"):
            chat_server.valid_name(name)
        assert not readings(f"* {name} joined")


SOME_WORDS = "Ann Bob 2 3 by room here closing bye pong wrong password nobody not reading private"
SOME_WORDS += f" a name Lab-3 X. are is to operator full {' '.join(WORDS)}"


@pytest.mark.parametrize("seed", range(5))
def test_a_notice_is_read_in_one_way(seed: int) -> None:
    chance = random.Random(seed)
    hall = Hall()
    watcher, unnamed, one = hall.join("Watcher"), hall.join(), hall.join()
    name = ""
    for _ in range(300):
        wanted = " ".join(chance.choices(SOME_WORDS.split(), k=chance.choice([1, 1, 2, 3, 4])))
        hall.say(one, f"/name {wanted}\n")
        (answer,), said = hall.heard(one), hall.heard(watcher)
        if answer.startswith("* a name "):
            assert said == [] and readings(answer) == [(EXPLANATION, ())]
            continue
        assert readings(answer) == [("* you are NAME", (wanted,))]
        if wanted != name:
            news = "* NAME is now NAME", (name, wanted)
            assert [readings(line) for line in said] == [
                [news if name else ("* NAME joined", (wanted,))]
            ]
        name = wanted
        hall.say(unnamed, f"/name {name}\n/who\n")
        *_, taken, here = hall.heard(unnamed)
        assert readings(taken) == [("* NAME is taken", (name,))]
        assert readings(here) == [("* here: NAMES and N unnamed", ("Watcher", name))]
        how = chance.choice(["left", "was removed"])
        if chance.random() < 0.5:
            hall.room.leave(one, how)
            (line,) = hall.heard(watcher)
            assert readings(line) == [(f"* NAME {how}", (name,))]
            one, name = hall.join(), ""
