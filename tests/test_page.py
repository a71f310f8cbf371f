"""The page that browsers get, in a real Chromium."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from chromium import SHIFT, Browser, Page
from support import Server

SIZES = {"desktop": (1000, 700, False), "phone": (360, 640, True)}

# Returns the texts whose contrast to what is behind them is too small: at least 4.5 is asked for
# (WCAG 2.1, 1.4.3).
LOW_CONTRAST = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (parse(color)[3] !== 0) return color;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!text.length || !element.getClientRects().length) continue;
    const [a, b] = [getComputedStyle(element).color, behind(element)].map(light).sort();
    const [low, high] = [Math.min(a, b), Math.max(a, b)];
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found.push(`${text[0].data}: ${contrast}`);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.kill()


@pytest.fixture
def pages(chromium: Browser) -> Iterator[Callable[[], Page]]:
    """pages() returns a new page. None may have done anything against its own policy."""
    opened: list[Page] = []

    def new_page() -> Page:
        opened.append(chromium.new_page())
        opened[-1].resize(*SIZES["desktop"])
        return opened[-1]

    yield new_page
    for page in opened:
        faults = page.faults()
        page.close()
        assert faults == []


@pytest.fixture
def page(pages: Callable[[], Page]) -> Page:
    return pages()


class WebRoom:
    """A room for browsers; whoever else joins comes to the other port."""

    def __init__(self, start: Callable[..., Server], *options: str) -> None:
        self.server = start("chat_server.py", *options, web=True)
        self.server.web = False
        self.web = self.server.web_port
        self.url = f"{'https' if self.server.tls else 'http'}://127.0.0.1:{self.web}/"

    def enter(self, page: Page, name: str = "") -> Page:
        """Lets a page into the room."""
        page.open(self.url)
        return join(page, name)


@pytest.fixture
def room(start: Callable[..., Server]) -> WebRoom:
    return WebRoom(start)


def join(page: Page, name: str) -> Page:
    page.wait_for("document.activeElement.id === 'nick'")
    page.value("document.getElementById('nick').select()")
    page.type(name)
    page.press("Enter")
    shows(page, "Welcome to the chatroom!")
    if name:
        page.wait_for(f"document.activeElement.placeholder === {json.dumps(f'Message as {name}')}")
    return page


def say(page: Page, text: str) -> None:
    page.wait_for("document.activeElement.id === 'box'")
    page.type(text)
    page.press("Enter")


def shows(page: Page, text: str) -> None:
    page.wait_for(f"document.body.innerText.includes({json.dumps(text)})")


def rows(page: Page, kind: str = "p") -> list[str]:
    """Returns what the rows say, without their times."""
    found = f"[...document.querySelectorAll('#log {kind} > span')]"
    return list(page.value(f"{found}.map((row) => row.innerText)"))


def watch_sending(page: Page) -> None:
    """Has the next document keep what it sends, in `outgoing`."""
    page.before_load(
        "{ const send = WebSocket.prototype.send; window.outgoing = [];"
        "WebSocket.prototype.send = function (line) { outgoing.push(line); send.call(this, line); };"
        "}"
    )


def hurry(page: Page) -> None:
    """Has seconds pass five times as fast in the next document."""
    for timer in "setTimeout", "setInterval":
        page.before_load(
            f"const {timer}_ = {timer};"
            f"window.{timer} = (call, ms, ...given) => {timer}_(call, ms / 5, ...given)"
        )


def color(page: Page, name: str) -> str:
    """Returns the color of a name in the last message that begins with it."""
    find = f"[...document.querySelectorAll('#log b')].filter((b) => b.innerText === '{name}').pop()"
    return str(page.value(f"getComputedStyle({find}).color"))


# Names


def test_a_name_is_asked_for_and_remembered(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.expect("* Ann joined\n")
    assert page.value("document.title") == f"Chat on 127.0.0.1:{room.web}"
    say(page, "/quit")
    bob.expect("* Ann left\n")
    shows(page, "You have left.")
    page.open(room.url)
    assert page.value("document.activeElement.id") == "nick"
    assert page.value("document.getElementById('nick').value") == "Ann"


def test_a_browser_that_keeps_nothing_can_talk(room: WebRoom, page: Page) -> None:
    page.before_load(
        "Object.defineProperty(window, 'localStorage', "
        "{ get() { throw new DOMException('forbidden', 'SecurityError'); } })"
    )
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    say(page, "Hello")
    bob.expect("* Ann joined\n", "Ann: Hello\n")


def test_nobody_has_to_have_a_name(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page)
    say(page, "Hello")
    bob.expect("Hello\n")
    assert rows(page, ".own") == ["Hello"]


def test_a_taken_name_is_taken_back_when_it_is_free(room: WebRoom, page: Page) -> None:
    first, bob = room.server.join("Ann"), room.server.join("Bob")
    page.open(room.url)
    page.type("Ann")
    page.press("Enter")
    shows(page, "you are Ann_")
    assert "Ann is taken" in rows(page, ".notice")
    say(page, "It's me")
    bob.expect("* Ann_ joined\n", "Ann_: It's me\n")
    first.send("/quit\n")
    page.wait_for("document.activeElement.placeholder === 'Message as Ann'")
    say(page, "Again")
    bob.expect("* Ann left\n", "* Ann_ is now Ann\n", "Ann: Again\n")


def test_a_name_that_the_room_does_not_allow_is_asked_for_again(room: WebRoom, page: Page) -> None:
    page.open(room.url)
    page.type("A:nn")
    page.press("Enter")
    shows(page, "a name has letters and digits")
    join(page, "Ann")


def test_whoever_changes_the_name_keeps_it(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    say(page, "/name Anna")
    page.wait_for("document.activeElement.placeholder === 'Message as Anna'")
    page.open(room.url)
    page.wait_for("document.activeElement.placeholder === 'Message as Anna'")


# Talk


def test_talk_both_ways(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.read_until("* Ann joined\n")
    bob.send("Hello Ann\n")
    shows(page, "Bob: Hello Ann")
    say(page, "Hello Bob")
    bob.expect("Ann: Hello Bob\n")
    bob.send("/msg Ann: a secret\n")
    shows(page, "Bob (private): a secret")
    say(page, "/msg Bob: another")
    bob.expect("Ann (private): another\n")
    assert rows(page, ".said") == ["Bob: Hello Ann"]
    assert rows(page, ".own") == ["Ann: Hello Bob", "to Bob (private): another"]
    assert rows(page, ".private") == ["Bob (private): a secret", "to Bob (private): another"]


def test_only_a_name_that_is_here_has_a_color(room: WebRoom, page: Page) -> None:
    bob, other = room.server.join("Bob"), room.server.join()
    room.enter(page, "Ann")
    bob.send("Hello\n")
    other.send("Note: buy milk\n")
    shows(page, "Note: buy milk")
    assert page.value("[...document.querySelectorAll('#log b')].map((b) => b.innerText)") == ["Bob"]
    assert color(page, "Bob") != page.value("getComputedStyle(document.body).color")


def test_what_is_said_is_only_ever_text(room: WebRoom, page: Page) -> None:
    bob, other = room.server.join("Bob"), room.server.join()
    room.enter(page, "Ann")
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script> &lt;"
    bob.send(f"{markup}\n")
    shows(page, f"Bob: {markup}")
    other.send(f"<i>Bob</i>: {markup}\n")
    shows(page, f"<i>Bob</i>: {markup}")
    assert not page.value("document.querySelectorAll('#log img, #log script, #log i').length")


def test_no_message_turns_another_one_around(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("abc\n\u202eabc\u2067abc\nabc\n")
    page.wait_for("document.querySelectorAll('#log .said').length === 3")
    names = "[...document.querySelectorAll('#log .said b')]"
    assert len(set(page.value(f"{names}.map((b) => b.getBoundingClientRect().x)"))) == 1
    page.value("mark(show('own', '\u202eabc', 'Ann'), 'perhaps not sent'); settle()")
    places = page.value("[...log.lastChild.lastChild.children].map((one) => one.offsetLeft)")
    assert places == sorted(places)


def test_a_paste_of_several_lines_is_so_many_messages(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.type("/one\r\n\n  two\n/quit")
    page.press("Enter", SHIFT)
    page.type("//four")
    assert rows(page, ".own") == []
    page.press("Enter")
    bob.expect("* Ann joined\n", "Ann: /one\n", "Ann:   two\n", "Ann: /quit\n", "Ann: //four\n")
    assert rows(page, ".own") == ["Ann: /one", "Ann:   two", "Ann: /quit", "Ann: //four"]
    say(page, "//one")
    bob.expect("Ann: /one\n")


def test_the_password_of_an_operator_is_not_shown(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    say(page, "/op open sesame")
    page.wait_for("log.querySelector('.own') !== null")
    assert rows(page, ".own") == ["/op \u2026"]
    assert "sesame" not in page.value("document.body.innerHTML + box.value")


@pytest.mark.parametrize("notice", ["is now Q", "left", "was removed"])
def test_a_name_that_reads_like_a_notice_is_no_notice(
    room: WebRoom, page: Page, notice: str
) -> None:
    """Ours lets nobody have such a name; an older room did."""
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.wait_for("names.size === 2")
    page.value(f"hear('* Bob {notice} joined')")
    assert page.value("[...names].sort()") == ["Ann", "Bob", f"Bob {notice}"]
    bob.send("/msg Ann: a secret\n")
    shows(page, "a secret")
    assert rows(page, ".private") == ["Bob (private): a secret"]


def test_only_who_is_here_can_leave_or_have_another_name(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.wait_for("names.size === 1")
    for notice in "Zed is now Bob", "Ann is now", " is now Bob", "Ann left the room", "joined":
        page.value(f"hear('* {notice}')")
        assert page.value("[...names]") == ["Ann"]


def test_who_is_here(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.wait_for("page.count.innerText === '2 here'")
    other = room.server.join()
    page.value("page.who.open = false")
    page.click("summary")
    page.wait_for("page.list.innerText === 'Ann (you)\\nBob\\n1 unnamed'")
    assert page.value("page.count.innerText") == "3 here"
    assert not [row for row in rows(page) if "here:" in row], "it wasn't the user who asked"
    bob.send("/name Bert\n")
    bob.read_until("* you are Bert\n")
    carl = room.server.join("Carl")
    page.wait_for("document.getElementById('list').innerText.startsWith('Ann (you)\\nBert\\nCarl')")
    carl.send("/quit\n")
    page.wait_for("!document.getElementById('list').innerText.includes('Carl')")
    page.click("#box")
    say(page, "/who")
    shows(page, "here: Ann, Bert and 1 unnamed")
    other.close()


# Keyboards that compose what they type


def test_enter_sends_what_a_phone_is_still_composing(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.resize(*SIZES["phone"])
    bob.read_until("* Ann joined\n")
    page.click("#box")
    page.type("Hello ")
    page.compose("Bob")
    page.press("Enter")
    bob.expect("Ann: Hello Bob\n")
    assert page.value("box.value") == ""
    page.compose("again")  # nothing of the first is left in the keyboard
    page.click("#form button")
    bob.expect("Ann: again\n")
    assert page.value("box.value") == ""


def test_shift_enter_is_a_new_line_while_composing_too(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.type("one")
    page.press("Enter", SHIFT)
    page.compose("two")
    page.press("Enter", SHIFT)
    assert page.value("box.value") == "one\ntwo\n"
    assert rows(page, ".own") == []
    page.press("Enter")
    bob.expect("* Ann joined\n", "Ann: one\n", "Ann: two\n")


def test_enter_that_picks_a_candidate_sends_nothing(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.compose("\u306b\u307b\u3093")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    page.type("\u65e5\u672c")
    page.call("Input.dispatchKeyEvent", type="keyUp", **key)
    assert page.value("box.value") == "\u65e5\u672c"
    assert rows(page, ".own") == []
    page.press("Enter")
    bob.expect("* Ann joined\n", "Ann: \u65e5\u672c\n")


def test_one_enter_ends_a_korean_syllable_and_sends_it(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.compose("\ud55c")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    page.type("\ud55c")
    key["windowsVirtualKeyCode"] = 13
    page.call("Input.dispatchKeyEvent", type="char", text="\r", **key)
    page.call("Input.dispatchKeyEvent", type="keyUp", **key)
    bob.expect("* Ann joined\n", "Ann: \ud55c\n")
    assert rows(page, ".own") == ["Ann: \ud55c"]


# What the page shows


def test_the_title_counts_what_is_unread(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    title = page.value("document.title")
    page.hide(True)
    page.wait_for("document.hidden")
    bob.send("one\n/msg Ann: two\n")
    page.wait_for(f"document.title === '(2) {title}'")
    page.hide(False)
    page.wait_for(f"document.title === '{title}'")


def test_whoever_reads_further_up_stays_there(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("".join(f"{number}\n" for number in range(200)))
    shows(page, "Bob: 199")
    page.wait_for(IS_LOW)
    page.value("log.scrollTop -= 300")
    page.wait_for("!following")
    seen = "document.elementFromPoint(200, 300).innerText"
    before = page.value(seen)
    bob.send("new\n")
    shows(page, "New messages")
    assert page.value(seen) == before
    page.click("#jump")
    page.wait_for(IS_LOW)
    assert page.value("document.getElementById('jump').hidden")
    page.resize(*SIZES["phone"])
    page.wait_for(IS_LOW)
    page.value("for (let row = 0; row < 9; row++) show('said', 'more')")
    page.value("settle(); log.onscroll()")
    assert page.value("following")


LONG = "a message that takes several rows on a phone " * 3
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
IS_LOW = "following && log.scrollHeight - log.clientHeight - log.scrollTop < 2"


def test_the_page_follows_whatever_size_it_has(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.resize(*SIZES["phone"])
    page.value(f"for (let row = 0; row < 100; row++) show('said', '{LONG}'); settle()")
    # The browser tells of the new place in the next frame, when there is one more row.
    page.value(f"new ResizeObserver(() => {{ show('said', '{LONG}'); settle(); }}).observe(log)")
    for width, height in (360, 300), (360, 640), (640, 360), (360, 640), (1000, 700), (360, 640):
        page.resize(width, height, True)
        page.wait_for(f"innerWidth === {width} && innerHeight === {height}")
        page.value(TWO_FRAMES)
        assert page.value("following")
    page.value("settle()")
    page.wait_for(IS_LOW)


def test_the_page_follows_while_its_reader_types(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.value("for (let row = 0; row < 100; row++) show('said', 'more'); settle()")
    for _ in range(100):
        page.type("many words ")
        page.value(TWO_FRAMES)
        assert page.value(IS_LOW)
    assert page.value("box.clientHeight") > 100


def test_the_page_follows_when_the_first_rows_are_taken_away(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.resize(*SIZES["phone"])
    for _ in range(2):
        page.value("while (fresh.childElementCount < MAX_ROWS) show('said', 'short')")
        page.value("settle(); while (log.childElementCount < MAX_ROWS) log.append(make('p', ''))")
        page.value("settle()")
        page.value(TWO_FRAMES)
        page.value("show('said', 'short'); settle()")
        page.value(f"show('said', '{LONG}'); settle(); {TWO_FRAMES}")
        assert page.value("log.childElementCount") == 5000
        assert page.value("following")
    page.value("settle()")
    page.wait_for(IS_LOW)


def test_a_reader_near_the_end_stays_when_the_first_rows_are_taken_away(
    room: WebRoom, page: Page
) -> None:
    room.enter(page, "Ann")
    page.value("for (let row = 0; row < MAX_ROWS; row++) show('said', `${row}.`)")
    page.value("settle(); while (log.childElementCount < MAX_ROWS) log.append(make('p', '', 'x'))")
    page.value("settle()")
    page.wait_for(IS_LOW)
    page.value("log.scrollTop -= 300")
    page.wait_for("!following")
    seen = "document.elementFromPoint(200, 300).innerText"
    before = page.value(seen)
    page.value("show('said', 'one more'), settle()")
    assert page.value("log.childElementCount") == 5000
    assert page.value(seen) == before


@pytest.mark.parametrize("down", [-4, -40, -400])
def test_whoever_scrolls_up_in_a_flood_stays_there(room: WebRoom, page: Page, down: int) -> None:
    room.enter(page, "Ann")
    page.value("for (let row = 0; row < 200; row++) show('said', 'more'); settle()")
    page.wait_for(IS_LOW)
    page.value("window.flood = setInterval(() => (show('said', 'more'), settle()), 5)")
    page.turn_wheel(down)
    page.wait_for("!following")
    page.turn_wheel(100_000)
    page.value("clearInterval(flood)")
    page.turn_wheel(100_000)
    page.wait_for("following")


def test_a_pull_does_not_load_the_page_again(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.resize(*SIZES["phone"])
    page.pull(150, 600)
    page.pull(600, 150)
    say(page, "still here")
    bob.expect("* Ann joined\n", "Ann: still here\n")


def test_a_page_has_5000_rows_at_most(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("".join(f"{number}\n" for number in range(6000)))
    settled = "log.lastChild.innerText.endsWith('Bob: %d') && !settling"
    page.wait_for(settled % 5999)
    assert 4000 < page.value("log.childElementCount") <= 5000
    page.value("log.scrollTop = log.scrollHeight / 2")
    page.wait_for("!following")
    seen = "document.elementFromPoint(200, 300).innerText"
    before = page.value(seen)
    assert "Bob: " in before
    bob.send("".join(f"{number}\n" for number in range(6000, 7000)))
    page.wait_for(settled % 6999)
    assert 4000 < page.value("log.childElementCount") <= 5000
    assert page.value(seen) == before


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(
    start: Callable[..., Server], page: Page, size: str, dark: bool
) -> None:
    room = WebRoom(start)
    page.resize(*SIZES[size])
    page.set_dark(dark)
    page.open(room.url)
    assert page.value(LOW_CONTRAST) == []
    bob = room.server.join("Bob")
    join(page, "Ann")
    bob.send("w" * 500 + "\n/msg Ann: secret\n")
    # Names of all hues, on all that can be behind them.
    kinds = ["said", "own", "private"]
    page.value(
        "for (let sum = 0; sum < 24; sum++) "
        f"for (const kind of {kinds}) show(kind, 'text', String.fromCharCode(97 + sum))"
    )
    shows(page, "secret")
    page.value("mark(show('own', 'text'), 'perhaps not sent'); settle()")
    page.value("page.who.open = true")
    assert page.value(LOW_CONTRAST) == []
    assert page.value("document.documentElement.scrollWidth") == SIZES[size][0]
    assert page.value("log.scrollWidth === log.clientWidth")
    assert page.value("document.documentElement.scrollHeight") == SIZES[size][1]
    assert page.value("parseFloat(getComputedStyle(box).fontSize)") >= 16
    room.server.kill()
    shows(page, "Not connected")
    assert page.value(LOW_CONTRAST) == []


def test_the_keyboard_is_enough_and_everything_has_a_name(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.resize(*SIZES["phone"])
    bob = room.server.join("Bob")
    shows(page, "Bob joined")
    focused = "document.activeElement.id || document.activeElement.innerText"
    seen = []
    for _ in range(2):
        page.press("Tab", SHIFT)
        seen.append(page.value(focused))
    assert seen == ["log", "count"]
    page.press("Enter")
    page.wait_for("page.list.innerText === 'Ann (you)\\nBob'")
    page.press("Tab")
    assert page.value(focused) == "Bob"
    page.press("Enter")
    assert page.value("[box.value, document.activeElement.id]") == ["/msg Bob: ", "box"]
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "log", "status", "DisclosureTriangle", "heading", "link"}
    found = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    }
    assert {("log", "Messages"), ("textbox", "Message"), ("button", "Send")} <= found
    assert all(name for role, name in found if role != "status")
    bob.close()


def test_a_reload_leads_back_into_the_room(
    start: Callable[..., Server], page: Page, tmp_path: Any
) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    options = "--history", "10", "--password-file", str(tmp_path / "password")
    room = WebRoom(start, *options)
    page.open(room.url)
    page.type("Ann")
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'secret'")
    page.type("open sesame")
    page.press("Enter")
    shows(page, "Welcome to the chatroom!")
    page.wait_for("isReady")
    say(page, "One")
    page.wait_for("!sent.length")
    page.value("show('private', 'Two', 'Bob')")
    page.type("Half a li")
    page.call("Page.reload")
    page.wait_for("document.readyState === 'complete' && isReady")
    page.type("ne")
    page.value("settle()")
    assert page.value("[me, box.value]") == ["Ann", "Half a line"]
    assert rows(page, ".own") == ["Ann: One"]
    assert rows(page, ".private") == ["Bob (private): Two"]
    assert rows(page, ".said") == [], "the room's history has what is there already"
    assert len(rows(page, ".gap")) == 1
    page.type("\n/quit")
    page.value("box.value = '/quit'")
    page.press("Enter")
    shows(page, "You have left.")
    page.call("Page.reload")
    page.wait_for("document.readyState === 'complete' && document.activeElement.id === 'nick'")


def test_what_is_said_too_early_waits(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    page.value("isReady = false")  # as between the welcome and the answer to the name
    say(page, "Hello")
    assert page.value("box.value") == "Hello"
    page.value("beKnown()")
    bob.expect("* Ann joined\n", "Ann: Hello\n")
    assert page.value("box.value") == ""


def test_what_the_room_refuses_is_marked_and_given_back(
    start: Callable[..., Server], page: Page
) -> None:
    room = WebRoom(start, "--max-line", "50")
    room.enter(page, "Ann")
    for line in "x" * 60, "/msg Zed: are you there?", "/nonsense", "/name : :":
        page.value("box.value = ''")
        say(page, line)
        page.wait_for("!sent.length")
        assert page.value("box.value") == line
        assert rows(page, ".own")[-1].endswith(" (not sent)")
    page.value("box.value = ''")
    for line in "Hello", "/help", "/who", "/name Anna":
        say(page, line)
    page.wait_for("!sent.length")
    assert page.value("box.value") == ""
    assert rows(page, ".own")[-4:] == ["Ann: Hello", "/help", "/who", "/name Anna"]
    page.type("something else")
    page.value("send('y'.repeat(60), show('own', 'y', me))")
    page.wait_for("!sent.length")
    assert page.value("box.value") == f"{'y' * 60}\nsomething else"


def test_a_private_message_is_never_public(room: WebRoom, page: Page) -> None:
    bob, carl = room.server.join("Bob"), room.server.join("Carl")
    bob.expect("* Carl joined\n")
    room.enter(page, "Ann")
    page.type("/msg Bob: one")
    page.press("Enter", SHIFT)
    page.type("two")
    page.press("Enter")
    for line in " /msg Bob: three", "\uff0fmsg Bob: four", "/Msg Bob: five":
        say(page, line)
    said = ["one", "two", "three", "four", "five"]
    bob.expect("* Ann joined\n", *[f"Ann (private): {text}\n" for text in said])
    assert rows(page, ".own") == [f"to Bob (private): {text}" for text in said]
    say(page, "/msg Bob\nsix")
    page.wait_for("!sent.length")
    page.value("box.value = ''")
    say(page, "aloud")
    carl.expect("* Ann joined\n", "Ann: aloud\n")
    page.value("names.delete('Bob')")  # as in a room of which only 200 names are known
    bob.send("/msg Ann: psst\n")
    shows(page, "psst")
    assert rows(page, ".private")[-1] == "Bob (private): psst"


def test_the_people_stand_beside_the_messages(room: WebRoom, page: Page) -> None:
    bob, other = room.server.join("Bob"), room.server.join()
    room.enter(page, "Ann")
    box = "document.querySelector('%s').getBoundingClientRect()"
    page.wait_for("page.list.innerText === 'Ann (you)\\nBob\\n1 unnamed'")
    assert page.value("page.count.innerText") == "3 here"
    assert page.value(f"{box % '#list'}.left >= {box % '#log'}.right")
    page.resize(*SIZES["phone"])
    page.wait_for("!page.who.open")
    assert page.value(f"{box % '#log'}.width") == SIZES["phone"][0]
    page.click("summary")
    page.press("Escape")
    page.wait_for("!page.who.open")
    page.click("summary")
    page.wait_for("page.who.open")
    page.click("#log")
    page.wait_for("!page.who.open")
    page.type("Hi")
    page.click("summary")
    page.click("#list button")
    page.wait_for("!page.who.open")
    assert page.value("box.value") == "/msg Bob: "
    page.type("psst")
    bob.send("Hello\n")
    shows(page, "Bob: Hello")
    page.click("#log b")
    assert page.value("box.value") == "/msg Bob: psst"
    page.press("Enter")
    bob.read_until("Ann (private): psst\n")
    other.close()


def test_web_addresses_can_be_clicked(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    wiki = "https://en.wikipedia.org/wiki/Foo_(bar)"
    bob.send(
        f"see {wiki}, (http://a.b/c?d=1&e) and HTTP://10.0.0.1:8080/\u3002 javascript:alert(1)\n"
    )
    bob.send("ftp://a.b file:///etc http:// https://\u202egpj.exe data:text/html,x\n")
    shows(page, "gpj")
    links = page.value("[...log.querySelectorAll('a')].map((a) => [a.innerText, a.rel, a.target])")
    found = [wiki, "http://a.b/c?d=1&e", "HTTP://10.0.0.1:8080/"]
    assert links == [[one, "noopener noreferrer", "_blank"] for one in found]


def test_messages_with_the_own_name_are_marked(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("Hi Ann\nann!\nAnnual\nJoAnn\nlast\n")
    shows(page, "last")
    assert rows(page, ".mention") == ["Bob: Hi Ann", "Bob: ann!"]


def test_a_line_shows_where_unread_messages_begin(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("one\n")
    shows(page, "Bob: one")
    page.hide(True)
    page.wait_for("document.hidden")
    bob.send("two\nthree\n")
    shows(page, "Bob: three")
    page.hide(False)
    page.wait_for("!unread")
    kinds = "[...log.children].map((row) => row.className).join()"
    assert page.value(kinds).endswith("said,unread,said,said")
    page.hide(True)
    page.wait_for("document.hidden")
    bob.send("four\n")
    shows(page, "Bob: four")
    assert page.value(kinds).endswith("said,said,said,unread,said")


def test_tab_completes_names_and_up_brings_back(room: WebRoom, page: Page) -> None:
    others = [room.server.join(name) for name in ("Bob", "Bobby", "Lab 1")]
    room.enter(page, "Ann")
    page.wait_for("names.size === 4")
    for typed, done in (
        ("b", "Bob: "),
        ("bobb", "Bobby: "),
        ("Hi la", "Hi Lab 1 "),
        ("/msg lab", "/msg Lab 1: "),
    ):
        page.value("box.value = ''")
        page.type(typed)
        page.press("Tab")
        assert page.value("box.value") == done
    page.value("write('')")
    page.press("Tab")
    assert page.value("document.activeElement.id") == "say"
    page.value("box.focus()")
    for line in "one", "/op secret", "two":
        say(page, line)
    for key, text in ("Up", "two"), ("Up", "one"), ("Up", "one"), ("Down", "two"), ("Down", ""):
        page.press(f"Arrow{key}")
        assert page.value("box.value") == text
    page.type("mine")
    page.press("ArrowUp")
    assert page.value("box.value") == "mine"
    assert others


def test_who_is_ignored_is_not_shown(room: WebRoom, page: Page) -> None:
    bob, carl = room.server.join("Bob"), room.server.join("Carl")
    bob.expect("* Carl joined\n")
    room.enter(page, "Ann")
    say(page, "/ignore bob")
    bob.send("Hello\n/msg Ann: psst\n/name Bert\nAgain\n")
    carl.expect("* Ann joined\n", "Bob: Hello\n", "* Bob is now Bert\n", "Bert: Again\n")
    carl.send("last\n")
    shows(page, "last")
    assert rows(page, ".said") == ["Carl: last"]
    assert rows(page, ".private") == []
    say(page, "/ignore")
    say(page, "/ignore Bert")
    assert rows(page, ".notice")[-2:] == ["ignored: Bert", "ignored: nobody"]


def test_many_lines_are_sent_after_a_question(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    page.type("\n".join(map(str, range(21))))
    page.press("Enter")
    assert page.value("document.activeElement.innerText") == "Send 21 lines"
    assert rows(page, ".own") == []
    page.value("box.focus()")
    page.type("!")
    page.click("#say")
    assert rows(page, ".own") == []
    page.click("#say")
    bob.read_until("Ann: 20!\n")
    say(page, "\n".join(map(str, range(20))))
    bob.read_until("Ann: 19\n")


def test_what_is_copied_has_names_and_no_times(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("one\n  two\n")
    shows(page, "two")
    say(page, "three")
    page.value("getSelection().selectAllChildren(log)")
    event = "{ clipboardData: { setData(type, text) { copied = text; } }, preventDefault() {} }"
    copied = page.value(f"{{ let copied; log.oncopy({event}); copied }}")
    assert copied.endswith("\nBob: one\nBob:   two\nAnn: three")


def test_neighbours_have_colors_that_lie_apart(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    hues = "%s.map((name) => +inColor(name).style.getPropertyValue('--hue'))"
    for names in ["Ann", "John"], ["Lab 1", "Lab 2", "Lab 3"], ["Ann", "Ann_"]:
        found = page.value(hues % names)
        assert all(60 < abs(a - b) < 300 for a, b in zip(found, found[1:]))  # noqa: RUF007


@pytest.mark.parametrize("size", list(SIZES))
def test_fingers_can_touch_everything(room: WebRoom, page: Page, size: str) -> None:
    page.resize(*SIZES[size])
    small = (
        "[...document.querySelectorAll('button, input, textarea, summary')]"
        ".filter((one) => one.offsetHeight && one.offsetHeight < 44).map((one) => one.outerHTML)"
    )
    page.open(room.url)
    assert page.value(small) == []
    join(page, "Ann")
    bob = room.server.join("Bob")
    page.value("page.who.open = true")
    page.wait_for("page.list.innerText === 'Ann (you)\\nBob'")
    assert page.value(small) == []
    bob.close()


def test_without_colors_private_messages_still_stand_out(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    features = [{"name": "forced-colors", "value": "active"}]
    page.call("Emulation.setEmulatedMedia", features=features)
    page.value("for (const kind of ['said', 'private', 'said mention']) show(kind, 'x', 'Bob')")
    page.value("settle()")
    found = "[...log.children].slice(-3).map((row) => getComputedStyle(row).borderLeftWidth)"
    assert page.value(found) == ["0px", "4px", "4px"]


# The connection


def test_unsent_text_outlives_the_room(start: Callable[..., Server], page: Page) -> None:
    room = WebRoom(start)
    room.enter(page, "Ann")
    say(page, "Before")
    page.wait_for("!sent.length")
    page.type("Half a li")
    page.value("wait = 1000")
    room.server.stop()
    shows(page, "Not connected")
    page.type("ne")
    page.press("Enter")
    assert page.value("box.value") == "Half a line"
    again = WebRoom(start, "--port", str(room.server.port), "--web", str(room.web))
    bob = again.server.join("Bob")
    page.value("dispatchEvent(new Event('online'))")
    bob.read_until("Ann: Half a line\n")  # as Enter was pressed
    assert page.value("wait") == 1


def test_what_may_not_have_arrived_is_marked(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    say(page, "This arrives")
    bob.read_until("Ann: This arrives\n")
    page.wait_for("!sent.length")
    room.server.process.send_signal(signal.SIGSTOP)
    say(page, "This does not")
    room.server.kill()
    shows(page, "perhaps")
    assert rows(page, ".own") == ["Ann: This arrives", "Ann: This does not (perhaps not sent)"]


def test_the_history_is_not_shown_twice(start: Callable[..., Server], page: Page) -> None:
    room = WebRoom(start, "--history", "10")
    bob = room.server.join("Bob")
    bob.send("one\ntwo\n")
    bob.send("/who\n")
    bob.read_until("* here: Bob\n")
    room.enter(page, "Ann")
    say(page, "three")
    bob.read_until("Ann: three\n")
    page.wait_for("!sent.length")
    assert not page.value("document.querySelector('#log .said b')"), "others may have these names"
    assert not page.value("document.querySelector('#log .said time').innerText"), "nobody knows it"
    page.value("socket.close()")
    bob.expect("* Ann left\n")
    bob.send("four\n/who\n")
    bob.read_until("* here: Bob\n")
    page.value("connect()")
    shows(page, "four")
    talk = [row for row in rows(page) if ": " in row]
    assert talk == ["Bob: one", "Bob: two", "Ann: three", "Bob: four"]


def test_own_lines_may_stand_elsewhere_in_the_history(
    start: Callable[..., Server], page: Page
) -> None:
    room = WebRoom(start, "--history", "10")
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    bob.send("one\n")
    shows(page, "Bob: one")
    room.server.process.send_signal(signal.SIGSTOP)
    say(page, "two")
    bob.send("three\n")
    room.server.process.send_signal(signal.SIGCONT)
    shows(page, "Bob: three")
    page.wait_for("!sent.length")
    page.value("socket.close(); lose({ code: 1006 }); connect()")
    shows(page, "Not connected from")
    talk = [row for row in rows(page) if row.startswith(("Ann:", "Bob:"))]
    assert talk == ["Bob: one", "Ann: two", "Bob: three"]
    assert not rows(page, ".gap")[0].endswith("messages may be missing")


@pytest.mark.parametrize(
    ("history", "new", "missing"),
    [
        (["a", "b", "c", "b", "c"], ["b", "c"], False),
        (["a", "b", "c"], [], False),
        (["b", "c", "d"], ["b", "c", "d"], True),
        (["xa", "b", "c", "d"], ["xa", "b", "c", "d"], True),
        (["0"] * 20_000 + ["a", "b", "c"] + ["0"] * 4000, ["0"] * 4000, False),
        ([], [], True),
    ],
)
def test_what_is_new_in_the_history_is_what_follows_the_last_three_lines(
    room: WebRoom, page: Page, history: list[str], new: list[str], missing: bool
) -> None:
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    page.value("for (const line of 'zabc') show('said', line); settle(); lostAt = Date.now()")
    page.value(f"catchUp({json.dumps(history)}); settle()")
    assert rows(page, ".said")[4:] == new
    assert rows(page, ".gap")[0].endswith("messages may be missing") == missing


def test_a_connection_that_says_nothing_any_more_is_lost(room: WebRoom, page: Page) -> None:
    hurry(page)
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    say(page, "This arrives")
    bob.read_until("Ann: This arrives\n")
    page.wait_for("!sent.length")
    room.server.process.send_signal(signal.SIGSTOP)
    say(page, "This may not")
    shows(page, "Not connected")
    assert rows(page, ".own") == ["Ann: This arrives", "Ann: This may not (perhaps not sent)"]
    page.wait_for("wait >= 4")  # nor is a connection waited for that nobody answers
    room.server.process.send_signal(signal.SIGCONT)
    shows(page, "Not connected from")


def test_an_idle_connection_that_is_dead_is_lost(room: WebRoom, page: Page) -> None:
    hurry(page)
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    room.server.process.send_signal(signal.SIGSTOP)
    shows(page, "Not connected")


def test_a_silent_room_is_asked_now_and_then(room: WebRoom, page: Page) -> None:
    watch_sending(page)
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    page.value("clearInterval(pulse); silence = 0; outgoing = []; page.who.open = false")
    seconds = "for (let second = 0; second < {}; second++) listen()"
    page.value(seconds.format(11))
    assert page.value("outgoing") == []
    room.server.process.send_signal(signal.SIGSTOP)
    page.value(seconds.format(6))
    assert page.value("outgoing") == ["/ping"]
    assert page.value("inRoom")
    room.server.process.send_signal(signal.SIGCONT)
    page.wait_for("!sent.length && silence === 0")
    assert rows(page, ".notice") == ["Welcome to the chatroom!"]


@pytest.mark.parametrize("event", ["visibilitychange", "online", "pageshow"])
def test_whoever_is_back_learns_at_once_what_was_lost(
    room: WebRoom, page: Page, event: str
) -> None:
    hurry(page)
    watch_sending(page)
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    room.server.process.send_signal(signal.SIGSTOP)
    page.value("outgoing = []")
    page.value(f"document.dispatchEvent(new Event('{event}', {{ bubbles: true }}))")
    assert page.value("outgoing") == ["/ping"]
    shows(page, "Not connected")


def test_only_the_answer_to_the_users_own_ping_is_shown(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    say(page, "Hello")
    page.wait_for("!sent.length")
    say(page, "/ping")
    shows(page, "pong")
    say(page, "Hello again")
    page.wait_for("!sent.length")
    assert rows(page, ".notice") == ["Welcome to the chatroom!", "pong"]


def test_each_line_of_a_paste_is_known_to_have_arrived(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    page.wait_for("!sent.length")
    say(page, "\n".join(map(str, range(500))))
    page.press("Enter")  # which answers whether that is meant
    page.wait_for("!sent.length && log.querySelectorAll('.own').length === 500")
    assert rows(page, ".notice") == ["Welcome to the chatroom!"]


def test_whoever_has_left_stays_away_until_asked(room: WebRoom, page: Page) -> None:
    bob = room.server.join("Bob")
    room.enter(page, "Ann")
    say(page, "/quit")
    shows(page, "You have left.")
    assert page.value("retry") == 0
    page.click("#again")
    bob.expect("* Ann joined\n", "* Ann left\n", "* Ann joined\n")
    assert "perhaps" not in str(rows(page))
    page.value("socket.onclose({ code: 1008 })")
    shows(page, "You were removed from the room.")
    assert page.value("retry") == 0
    assert page.value("page.again.hidden"), "it can't work for some minutes"


def test_tries_to_connect_again_get_rarer(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    room.server.kill()
    page.wait_for("wait >= 4")
    page.value("wait = 20")
    page.click("#again")
    page.wait_for("wait === 30")


def test_a_closed_room_asks_for_its_password(
    start: Callable[..., Server], page: Page, tmp_path: Any
) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    room = WebRoom(start, "--password-file", str(tmp_path / "password"))
    page.open(room.url)
    page.type("Ann")
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'secret'")
    assert not page.value("socket"), "nobody waits at the door for what a person types"
    page.type("guess")
    page.press("Enter")
    shows(page, "That is not the password.")
    page.type("open sesame")
    page.press("Enter")
    shows(page, "Welcome to the chatroom!")
    page.value("connect()")  # as after a lost connection
    page.wait_for("document.body.innerText.split('Welcome to the chatroom!').length === 3")


def test_a_wrong_password_shows_nothing_of_the_room(
    start: Callable[..., Server], page: Page, tmp_path: Any
) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    room = WebRoom(start, "--password-file", str(tmp_path / "password"))
    page.open(room.url)
    page.value("window.seen = []")
    page.value(
        "new MutationObserver(() => seen.push(page.room.hidden))"
        ".observe(page.room, { attributes: true })"
    )
    page.type("Ann")
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'secret'")
    page.type("guess")
    page.press("Enter")
    shows(page, "That is not the password.")
    assert False not in page.value("seen")


def test_a_full_room_is_tried_again(start: Callable[..., Server], page: Page) -> None:
    room = WebRoom(start, "--max-clients", "1")
    bob = room.server.join("Bob")
    page.open(room.url)
    page.type("Ann")
    page.press("Enter")
    shows(page, "The room is full.")
    bob.send("/quit\n")
    bob.rest()
    bob.close()
    shows(page, "Welcome to the chatroom!")


@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_through_tls(start: Callable[..., Server], page: Page) -> None:
    room = WebRoom(start)
    bob = room.server.join("Bob")
    page.trust_any_certificate()
    room.enter(page, "Ann")
    say(page, "Hello")
    bob.expect("* Ann joined\n", "Ann: Hello\n")
    assert page.requests == [room.url, room.url.replace("https", "wss")]


def test_under_a_path_of_a_proxy(room: WebRoom, page: Page, behind: Callable[[int], str]) -> None:
    bob = room.server.join("Bob")
    page.open(behind(room.web))
    join(page, "Ann")
    say(page, "Hello")
    bob.expect("* Ann joined\n", "Ann: Hello\n")
    assert page.value("document.title").endswith("/chat")


def test_the_page_asks_nobody_else_for_anything(room: WebRoom, page: Page) -> None:
    room.enter(page, "Ann")
    bob = room.server.join("Bob")
    bob.send("http://example.com/picture.png\n")
    shows(page, "picture.png")
    assert page.requests == [room.url, room.url.replace("http", "ws")]


# A page from elsewhere

ATTACK = """<!DOCTYPE html>
<title>Elsewhere</title>
<script>
const results = {}, ports = PORTS;
let loads = 0;
async function attack(port) {
  const there = `127.0.0.1:${port}`, post = { method: "POST", body: "fetched\\n" };
  const outcome = (promise) => promise.then(() => "done", () => "refused");
  results[`${port} read`] = await outcome(fetch(`http://${there}/`));
  results[`${port} post`] = await outcome(fetch(`http://${there}/`, post));
  await outcome(fetch(`http://${there}/`, { ...post, mode: "no-cors" }));
  results[`${port} socket`] = await outcome(new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${there}/`);
    socket.onopen = socket.onmessage = resolve;
    socket.onerror = socket.onclose = reject;
  }));
}
function submit(port) {
  const there = `127.0.0.1:${port}`;
  document.body.insertAdjacentHTML("beforeend", `
    <iframe name="frame${port}"></iframe>
    <form method="post" enctype="text/plain" target="frame${port}" action="http://${there}/">
      <textarea name="posted">\\nposted\\n</textarea>
    </form>`);
  document.querySelector(`[name=frame${port}]`).onload = () => loads++;
  document.forms[document.forms.length - 1].submit();
}
onload = async () => {
  for (const port of ports) await attack(port);
  for (const port of ports) submit(port);
};
</script>
"""


@pytest.fixture
def elsewhere() -> Iterator[Callable[[str], str]]:
    """elsewhere(html) returns the URL of that page, which somebody else serves."""
    servers: list[ThreadingHTTPServer] = []

    def serve(html: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def behind() -> Iterator[Callable[[int], str]]:
    """behind(port) returns the URL at which a proxy has what is at a port, under /chat/."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = listener.getsockname()[1]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                head = peer.recv(65536)
                if not head.startswith(b"GET /chat/ "):
                    peer.close()
                    continue
                room = socket.create_connection(("127.0.0.1", port))
                room.sendall(head.replace(b"/chat/", b"/", 1))
                for pair in (peer, room), (room, peer):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def start_proxy(port: int) -> str:
        threading.Thread(target=serve, args=(port,), daemon=True).start()
        return f"http://127.0.0.1:{ours}/chat/"

    yield start_proxy
    listener.close()


def test_a_page_from_elsewhere_can_neither_read_nor_speak(
    room: WebRoom, chromium: Browser, elsewhere: Callable[[str], str]
) -> None:
    bob, carl = room.server.join("Bob"), room.server.join("Carl")
    bob.expect("* Carl joined\n")
    ports = [room.web, room.server.port]
    page = chromium.new_page()
    page.open(elsewhere(ATTACK.replace("PORTS", str(ports))))
    page.wait_for(f"loads >= {len(ports)}")
    results = page.value("results")
    assert len(results) == 6
    assert set(results.values()) == {"refused"}
    page.close()
    carl.send("the first word\n")
    bob.expect("Carl: the first word\n")
