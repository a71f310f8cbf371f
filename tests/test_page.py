"""The page that browsers get, in a real Chromium."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from chromium import SHIFT, Browser, Page
from support import Peer, Start

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
    const lights = [getComputedStyle(element).color, behind(element)].map(light);
    const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (contrast < 4.5) found.push(`${text[0].data}: ${contrast}`);
  }
  return found;
})()
"""
# Returns what shows no ring when it has the focus.
NO_RING = """
(() => {
  const before = document.activeElement, found = [];
  for (const one of document.querySelectorAll("button, input, textarea, summary, [tabindex]")) {
    one.focus();
    const { outlineStyle, outlineColor, backgroundColor } = getComputedStyle(one);
    const hasRing = outlineStyle === "solid" && outlineColor !== backgroundColor;
    if (document.activeElement === one && !hasRing) found.push(one.outerHTML);
  }
  before.focus();
  return found;
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.kill()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page, which may do nothing against its own policy, and ask nobody else for anything."""
    one = Page(chromium)
    one.resize(*SIZES["desktop"])
    yield one
    faults, requests = one.faults(), one.requests
    one.close()
    assert faults == []
    assert all(url.startswith("data:") or "//127.0.0.1:" in url for url in requests)


class WebRoom:
    """A room for browsers; whoever else joins comes to the other port."""

    def __init__(self, start: Start, *options: str) -> None:
        self.server = start("chat_server.py", *options, web=True)
        self.server.web = False
        self.web = self.server.web_port
        self.url = f"{'https' if self.server.tls else 'http'}://127.0.0.1:{self.web}/"

    def enter(self, page: Page, name: str = "") -> None:
        page.open(self.url)
        join(page, name)


@pytest.fixture
def room(start: Start, request: pytest.FixtureRequest) -> WebRoom:
    """A room, with the options of the parameter."""
    return WebRoom(start, *getattr(request, "param", ()))


@pytest.fixture
def bob(room: WebRoom) -> Peer:
    return room.server.join("Bob")


@pytest.fixture
def ann(room: WebRoom, bob: Peer, page: Page) -> Page:
    """A page in the room, where Bob is."""
    room.enter(page, "Ann")
    bob.expect("* Ann joined\n")
    settled(page)
    return page


def knock(page: Page, name: str) -> None:
    page.wait_for("document.activeElement.id === 'nick'")
    page.value("document.getElementById('nick').select()")
    page.type(name)
    page.press("Enter")


def join(page: Page, name: str) -> None:
    knock(page, name)
    shows(page, "Welcome to the chatroom!")
    if name:
        is_known_as(page, name)


def is_known_as(page: Page, name: str) -> None:
    page.wait_for(f"document.activeElement.placeholder === {json.dumps(f'Message as {name}')}")


def settled(page: Page) -> None:
    """Waits until all that was sent has arrived."""
    page.wait_for("isReady && !sent.length && !settling")


def say(page: Page, *texts: str) -> None:
    for text in texts:
        page.wait_for("document.activeElement.id === 'box'")
        page.type(text)
        page.press("Enter")


def shows(page: Page, text: str) -> None:
    page.wait_for(f"document.body.innerText.includes({json.dumps(text)})")


def rows(page: Page, kind: str = "p") -> list[str]:
    """Returns what the rows say, without their times."""
    found = f"[...document.querySelectorAll('#log {kind} > span')]"
    return list(page.value(f"{found}.map((row) => row.innerText)"))


def let_seconds_pass(page: Page, count: int) -> None:
    """Has the page count these, and none by itself any more."""
    page.value(f"clearInterval(pulse); for (let second = 0; second < {count}; second++) listen()")


# Names


def test_a_name_is_remembered_but_who_left_stays_away(room: WebRoom, bob: Peer, ann: Page) -> None:
    assert ann.value("document.title") == f"Chat on 127.0.0.1:{room.web}"
    assert not ann.value("log.translate"), "names, and what is compared, stay as they are"
    say(ann, "/name Anna")
    is_known_as(ann, "Anna")
    ann.open(room.url)
    is_known_as(ann, "Anna")
    say(ann, "/quit")
    shows(ann, "You have left.")
    assert ann.value("retry") == 0
    ann.click("#again")
    bob.expect("* Ann is now Anna\n", *["* Anna left\n", "* Anna joined\n"] * 2)
    assert "perhaps" not in str(rows(ann))
    ann.value("socket.onclose({ code: 1008 })")
    shows(ann, "You were removed from the room.")
    assert ann.value("retry") == 0
    assert ann.value("page.again.hidden"), "it can't work for some minutes"
    ann.open(room.url)
    assert ann.value("[document.activeElement.id, page.nick.value]") == ["nick", "Anna"]


def test_a_name_that_one_cannot_have_yet(room: WebRoom, bob: Peer, page: Page) -> None:
    first = room.server.join("Ann")
    page.open(room.url)
    knock(page, "A:nn")
    shows(page, "a name has letters and digits")
    page.type("!")
    shows(page, "a name has letters and digits")  # while they type
    knock(page, "Ann")
    shows(page, "you are Ann_")
    assert "Ann is taken" in rows(page, ".notice")
    say(page, "It's me")
    bob.expect("* Ann joined\n", "* Ann_ joined\n", "Ann_: It's me\n")
    first.send("/quit\n")
    is_known_as(page, "Ann")
    say(page, "Again")
    bob.expect("* Ann left\n", "* Ann_ is now Ann\n", "Ann: Again\n")
    _others = [room.server.join(f"{'x' * (32 - tail)}{'_' * tail}") for tail in (0, 1)]
    page.value(f"enter(false); page.nick.value = '{'x' * 32}'; page.door.requestSubmit()")
    is_known_as(page, f"{'x' * 30}__")


def test_nobody_comes_in_by_half_a_name(start: Start, room: WebRoom, page: Page) -> None:
    page.open(room.url)
    room.server.kill()
    knock(page, "Ann")
    shows(page, "Not connected.")
    page.type("Anna")
    again = WebRoom(start, "--port", str(room.server.port), "--web", str(room.web))
    bob = again.server.join("Bob")
    assert page.value("[page.nick.value, retry, socket]") == ["AnnAnna", 0, None]
    page.press("Enter")
    bob.expect("* AnnAnna joined\n")


# Talk


def test_talk_both_ways(bob: Peer, ann: Page) -> None:
    bob.send("Hello Ann\n  twice\n")
    shows(ann, "twice")
    say(ann, "Hello Bob", "/ping", "//one", "/op open sesame")
    settled(ann)
    bob.send("/msg Ann: a secret\n")
    shows(ann, "Bob (private): a secret")
    say(ann, "/msg Bob: another")
    bob.expect("Ann: Hello Bob\n", "Ann: /one\n", "Ann (private): another\n")
    assert rows(ann, ".said") == ["Bob: Hello Ann", "Bob:   twice"]
    own = ["Ann: Hello Bob", "/ping", "Ann: /one", "/op \u2026", "to Bob (private): another"]
    assert rows(ann, ".own") == own
    assert rows(ann, ".private") == ["Bob (private): a secret", "to Bob (private): another"]
    assert rows(ann, ".notice")[:2] == ["Welcome to the chatroom!", "pong"], "the user's own ping"
    assert "sesame" not in ann.value("document.body.innerHTML + box.value")
    ann.value("getSelection().selectAllChildren(log)")
    event = "{ clipboardData: { setData(type, text) { copied = text; } }, preventDefault() {} }"
    copied = ann.value(f"{{ let copied; log.oncopy({event}); copied }}")
    assert "\nBob: Hello Ann\nBob:   twice\nAnn: Hello Bob\n" in copied, "without times"


def test_what_is_said_is_only_ever_text(room: WebRoom, bob: Peer, ann: Page) -> None:
    other = room.server.join()
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script> &lt;"
    wiki = "https://en.wikipedia.org/wiki/Foo_(bar)"
    bob.send(f"{markup}\nHi Ann\nann!\nAnnual\nJoAnn\n")
    bob.send(f"see {wiki}, (http://a.b/c?d=1&e) and HTTP://10.0.0.1:8080/\u3002 javascript:x\n")
    bob.send("ftp://a.b file:///etc http:// https://\u202egpj.exe data:text/html,x\n")
    shows(ann, "gpj")
    other.send(f"<i>Bob</i>: {markup}\nNote: buy milk\n")
    shows(ann, "Note: buy milk")
    shows(ann, f"Bob: {markup}")
    shows(ann, f"<i>Bob</i>: {markup}")
    assert not ann.value("document.querySelectorAll('#log img, #log script, #log i').length")
    assert rows(ann, ".mention") == ["Bob: Hi Ann", "Bob: ann!"]
    links = ann.value("[...log.querySelectorAll('a')].map((a) => [a.innerText, a.rel, a.target])")
    found = [wiki, "http://a.b/c?d=1&e", "HTTP://10.0.0.1:8080/"]
    assert links == [[one, "noopener noreferrer", "_blank"] for one in found]
    color = "getComputedStyle(%s).color"
    assert set(ann.value("[...log.querySelectorAll('b')].map((b) => b.innerText)")) == {"Bob"}
    assert ann.value(color % "log.querySelector('b')") != ann.value(color % "document.body")
    # Ours lets nobody have a name that reads like a notice; an older room did.
    for notice in "Zed is now Rob", "Ann is now", " is now Rob", "Ann left the room", "joined":
        ann.value(f"hear('* {notice}')")
        assert ann.value("[...names].sort()") == ["Ann", "Bob"]
    for name in "Bob is now Q", "Bob left", "Bob was removed":
        ann.value(f"hear('* {name} joined')")
        assert ann.value("[...names].sort()") == ["Ann", "Bob", name]
        ann.value(f"hear('* {name} left')")


def test_each_row_keeps_its_order_and_its_color(bob: Peer, ann: Page) -> None:
    bob.send("abc\n\u202eabc\u2067abc\nabc\n")
    ann.wait_for("document.querySelectorAll('#log .said').length === 3")
    names = "[...document.querySelectorAll('#log .said b')]"
    assert len(set(ann.value(f"{names}.map((b) => b.getBoundingClientRect().x)"))) == 1
    ann.value("mark(show('own', '\u202eabc', 'Ann'), 'perhaps not sent'); settle()")
    places = ann.value("[...log.lastChild.lastChild.children].map((one) => one.offsetLeft)")
    assert places == sorted(places)
    hues = "%s.map((name) => +inColor(name).style.getPropertyValue('--hue'))"
    for neighbours in ["Ann", "John"], ["Lab 1", "Lab 2", "Lab 3"], ["Ann", "Ann_"]:
        found = ann.value(hues % neighbours)
        assert all(60 < abs(a - b) < 300 for a, b in zip(found, found[1:]))
    ann.prefer("forced-colors", "active")
    ann.value("for (const kind of ['said', 'private', 'said mention']) show(kind, 'x', 'Bob')")
    ann.value("settle()")
    lines = "[...log.children].slice(-3).map((row) => getComputedStyle(row).borderLeftWidth)"
    assert ann.value(lines) == ["0px", "4px", "4px"]


def test_a_paste_is_so_many_messages_and_what_is_said_too_early_waits(bob: Peer, ann: Page) -> None:
    ann.type("/one\r\n\n  two\n/quit")
    ann.press("Enter", SHIFT)
    ann.type("//four")
    assert rows(ann, ".own") == []
    ann.press("Enter")
    said = ["Ann: /one", "Ann:   two", "Ann: /quit", "Ann: //four"]
    bob.expect(*(f"{line}\n" for line in said))
    assert rows(ann, ".own") == said
    ann.type("\n".join(map(str, range(21))))
    for held in range(3):
        enter = {"key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r", "autoRepeat": held > 0}
        ann.call("Input.dispatchKeyEvent", type="keyDown", **enter)
    assert ann.value("document.activeElement.innerText") == "Send 21 lines"
    ann.value("box.focus()")
    ann.type("!")
    ann.click("#say")
    assert rows(ann, ".own") == said, "the question was about something else"
    ann.press("Enter")
    bob.read_until("Ann: 20!\n")
    say(ann, "\n".join(map(str, range(20))))
    bob.read_until("Ann: 19\n")
    settled(ann)
    assert rows(ann, ".notice") == ["Welcome to the chatroom!"], "nothing of its pings is shown"
    ann.value("isReady = false")  # as between the welcome and the answer to the name
    say(ann, "Hello")
    assert ann.value("box.value") == "Hello"
    ann.value("beKnown()")
    bob.expect("Ann: Hello\n")
    assert ann.value("box.value") == ""


@pytest.mark.parametrize("room", [["--max-line", "50"]], indirect=True)
def test_what_the_room_refuses_is_marked_and_given_back(ann: Page) -> None:
    for line in "x" * 60, "/msg Zed: are you there?", "/nonsense", "/name : :":
        ann.value("box.value = ''")
        say(ann, line)
        settled(ann)
        assert ann.value("box.value") == line
        assert rows(ann, ".own")[-1].endswith(" (not sent)")
    ann.value("box.value = ''")
    say(ann, "Hello", "/help", "/who", "/name Anna")
    settled(ann)
    assert ann.value("box.value") == ""
    assert rows(ann, ".own")[-4:] == ["Ann: Hello", "/help", "/who", "/name Anna"]
    ann.type("something else")
    ann.value("box.setSelectionRange(9, 9); send('y'.repeat(60), show('own', 'y', me))")
    settled(ann)
    ann.type(",")  # which comes where it would have come
    assert ann.value("box.value") == f"{'y' * 60}\nsomething, else"
    ann.value("write('/msg Zed: half a sec')")  # nothing public is put before it
    ann.value("send('z'.repeat(60), show('own', 'z', me))")
    settled(ann)
    assert ann.value("box.value") == "/msg Zed: half a sec"
    ann.value("write('')")
    say(ann, "/ping?", "/ping\u00a0", "delivered")  # one answer each, as to any /ping
    settled(ann)
    assert rows(ann, ".own")[-1] == "Anna: delivered"
    say(ann, "/op\u3000sesame")
    assert rows(ann, ".own")[-1] == "/op \u2026"


def test_what_the_room_says_at_the_end_refuses_nothing(ann: Page) -> None:
    for last in "the room is full, and your place goes to somebody else", "the room is closing":
        ann.value(f"send('Hello', show('own', 'Hello', me)); hear('* {last}'); lose({{}})")
        assert rows(ann, ".own")[-1] == "Ann: Hello (perhaps not sent)"
        ann.value("connect()")
        settled(ann)
        ann.value(f"me = ''; isReady = false; sent = [{{ line: '/name Ann' }}]; hear('* {last}')")
        assert ann.value("page.door.hidden"), "it isn't about the name"
        ann.value("lose({}); connect()")
        settled(ann)
    assert ann.value("box.value") == ""


def test_what_is_private_is_never_public(room: WebRoom, bob: Peer, ann: Page) -> None:
    carl = room.server.join("Carl")
    ann.type("/msg Bob: one")
    ann.press("Enter", SHIFT)
    ann.type("two")
    ann.press("Enter")
    say(ann, " /msg Bob: three", "\uff0fmsg Bob: four", "/Msg Bob: five", "\u200b/msg Bob: six")
    said = ["one", "two", "three", "four", "five", "six"]
    bob.expect("* Carl joined\n", *[f"Ann (private): {text}\n" for text in said])
    assert rows(ann, ".own") == [f"to Bob (private): {text}" for text in said]
    say(ann, "\ufe0f/msg Bob: seven")
    bob.expect("Ann (private): seven\n")
    say(ann, "one\n /msg Bob: in a paste")
    carl.expect("Ann: one\n", "Ann:  /msg Bob: in a paste\n")
    bob.expect("Ann: one\n", "Ann:  /msg Bob: in a paste\n")
    assert rows(ann, ".own")[-1] == "Ann:  /msg Bob: in a paste"
    say(ann, "/msg Bob\neight")
    settled(ann)
    ann.value("box.value = ''")
    say(ann, "aloud")
    carl.expect("Ann: aloud\n")
    say(ann, "/ignore bob")  # whoever is ignored is so under any name
    bob.send("Hello\n/msg Ann: psst\n/name Bert\nAgain\n")
    carl.expect("Bob: Hello\n", "* Bob is now Bert\n", "Bert: Again\n")
    carl.send("last\n")
    shows(ann, "last")
    assert rows(ann, ".said") == ["Carl: last"]
    assert "psst" not in str(rows(ann, ".private"))
    say(ann, "/ignore", "/ignore Bert", "/ignore -")
    assert rows(ann, ".notice")[-3:] == ["ignored: Bert", *["ignored: nobody"] * 2]
    say(ann, "/ignore Carl")
    carl.send("/name Cleo\n/quit\n")  # whoever is called Cleo next is somebody else
    shows(ann, "Cleo left")
    say(ann, "/ignore")
    assert rows(ann, ".notice")[-1] == "ignored: Carl"
    say(ann, "/ignore Carl")
    ann.value("names.delete('Bert')")  # as in a room of which only 200 names are known
    bob.send("/msg Ann: psst\n")
    shows(ann, "psst")
    assert rows(ann, ".private")[-1] == "Bert (private): psst"


def test_tab_completes_names_and_up_brings_back(room: WebRoom, ann: Page) -> None:
    _others = [room.server.join(name) for name in ("Bobby", "Lab 1", "Lab 2")]
    ann.wait_for("names.size === 5")
    completions = ("b", "Bob: "), ("bobb", "Bobby: "), ("Hi la", "Hi Lab 1 ")
    for typed, done in (*completions, ("/msg lab", "/msg Lab 1: ")):
        ann.value("box.value = ''")
        ann.type(typed)
        ann.press("Tab")
        assert ann.value("box.value") == done
    ann.value("write('')")
    ann.press("Tab")
    assert ann.value("document.activeElement.id") == "say"
    ann.value("box.focus()")
    say(ann, "one", "/op secret", "two")
    for key, text in ("Up", "two"), ("Up", "one"), ("Up", "one"), ("Down", "two"), ("Down", ""):
        ann.press(f"Arrow{key}")
        assert ann.value("box.value") == text
    ann.type("mine")
    ann.press("ArrowUp")
    assert ann.value("box.value") == "mine"
    ann.value("write('')")
    ann.type("/msg la")
    for number in 1, 2, 1:  # another Tab takes the next name
        ann.press("Tab")
        assert ann.value("box.value") == f"/msg Lab {number}: "
    ann.type("Hi bobb")
    for _ in range(2):
        assert ann.value("document.activeElement.id") == "box"
        ann.press("Tab")
        assert ann.value("box.value") == "/msg Lab 1: Hi Bobby "
    assert ann.value("document.activeElement.id") == "say", "there is no other"


def test_keyboards_that_compose_what_they_type(bob: Peer, ann: Page) -> None:
    ann.resize(*SIZES["phone"])
    ann.click("#box")
    ann.type("Hello ")
    ann.compose("Bob")
    ann.press("Enter")
    bob.expect("Ann: Hello Bob\n")
    ann.compose("again")  # nothing of the first is left in the keyboard
    ann.click("#form button")
    bob.expect("Ann: again\n")
    ann.type("one")
    ann.press("Enter", SHIFT)
    ann.compose("two")
    ann.press("Enter", SHIFT)
    assert ann.value("box.value") == "one\ntwo\n"
    ann.press("Enter")
    bob.expect("Ann: one\n", "Ann: two\n")
    ann.compose("\u306b\u307b\u3093")  # in Japanese, Enter picks a candidate
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    ann.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    ann.type("\u65e5\u672c")
    ann.call("Input.dispatchKeyEvent", type="keyUp", **key)
    assert ann.value("box.value") == "\u65e5\u672c"
    ann.press("Enter")
    bob.expect("Ann: \u65e5\u672c\n")
    ann.compose("\ud55c")  # in Korean, one ends a syllable and sends it
    ann.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    ann.type("\ud55c")
    key["windowsVirtualKeyCode"] = 13
    ann.call("Input.dispatchKeyEvent", type="char", text="\r", **key)
    ann.call("Input.dispatchKeyEvent", type="keyUp", **key)
    bob.expect("Ann: \ud55c\n")
    assert ann.value("box.value") == ""
    assert len(rows(ann, ".own")) == 6
    ann.type("\u304b")  # in Safari, composing is over when its last key is told
    ann.value('box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", keyCode: 229}))')
    assert ann.value("box.value") == "\u304b"


# What the page shows


def test_what_is_unread_is_counted_and_marked(bob: Peer, ann: Page) -> None:
    bob.send("one\n")
    shows(ann, "Bob: one")
    title = ann.value("document.title")
    ann.hide(True)
    bob.send("two\n/msg Ann: three\n")
    ann.wait_for(f"document.title === '(2) {title}'")
    ann.hide(False)
    ann.wait_for(f"document.title === '{title}'")
    kinds = "[...log.children].map((row) => row.className).join()"
    assert ann.value(kinds).endswith("said,unread,said,private")
    ann.hide(True)
    bob.send("four\n")
    shows(ann, "Bob: four")
    assert ann.value(kinds).endswith("said,said,private,unread,said")
    ann.hide(False)
    ann.value("for (let row = 0; row < 100; row++) show('said', 'more'); settle()")
    ann.wait_for(IS_LOW)
    ann.value("log.scrollTop -= 300")
    ann.wait_for("!following")
    ann.value("window.seen = log.children[90]")
    before = ann.value("seen.getBoundingClientRect().top")
    bob.send("five\n")
    ann.wait_for("log.lastChild.innerText.endsWith('five') && !settling")
    assert ann.value("seen.getBoundingClientRect().top") == before, "no line went away above it"
    ann.click("#jump")
    ann.wait_for(IS_LOW)
    assert ann.value(kinds).count("unread") == 1


LONG = "a message that takes several rows on a phone " * 3
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
IS_LOW = "following && log.scrollHeight - log.clientHeight - log.scrollTop < 2"
SEEN = "document.elementFromPoint(200, 300).innerText"


@pytest.mark.parametrize("down", [-4, -400])
def test_whoever_scrolls_up_in_a_flood_stays_there(ann: Page, down: int) -> None:
    ann.value("for (let row = 0; row < 200; row++) show('said', 'more'); settle()")
    ann.wait_for(IS_LOW)
    ann.value("window.flood = setInterval(() => (show('said', 'more'), settle()), 5)")
    ann.turn_wheel(down)
    ann.wait_for("!following")
    ann.value("clearInterval(flood)")
    ann.turn_wheel(100_000)
    ann.wait_for(IS_LOW)


def test_the_page_follows_whatever_size_it_has_and_while_its_reader_types(ann: Page) -> None:
    ann.resize(*SIZES["phone"])
    ann.value(f"for (let row = 0; row < 100; row++) show('said', '{LONG}'); settle()")
    # The browser tells of the new place in the next frame, when there is one more row.
    more = f"new ResizeObserver(() => {{ show('said', '{LONG}'); settle(); }})"
    ann.value(f"window.more = {more}; more.observe(log)")
    for width, height in (360, 300), (360, 640), (640, 360), (360, 640), (1000, 700), (360, 640):
        ann.resize(width, height, True)
        ann.wait_for(f"innerWidth === {width} && innerHeight === {height}")
        ann.value(TWO_FRAMES)
        assert ann.value("following")
    ann.value("more.disconnect(); settle(); box.focus()")
    ann.wait_for(IS_LOW)
    for _ in range(20):
        ann.type("many words ")
        ann.value(TWO_FRAMES)
        assert ann.value(IS_LOW)
    assert ann.value("box.clientHeight") > 100
    ann.value("for (let row = 0; row < 9; row++) show('said', 'more')")
    ann.value("settle(); log.onscroll()")
    assert ann.value("following")


def test_whoever_turns_a_phone_is_still_where_they_were(ann: Page) -> None:
    seen = "[...log.children].filter((row) => row.offsetTop < log.offsetTop + log.scrollTop + %s)"
    upright, sideways = (360, 640), (640, 360)
    ann.resize(*upright, True)
    ann.value(f"for (let row = 0; row < 200; row++) show('said', '{LONG}'); settle()")
    ann.type("many\nlines\n" * 5)  # whose place grows and shrinks with the page
    for size in sideways, upright, (1000, 700), upright, sideways, upright:
        ann.resize(*size, True)
        ann.value(TWO_FRAMES)
        ann.wait_for(IS_LOW)
    ann.value("log.scrollTop -= 3000")
    ann.wait_for("!following")
    upper = ann.value(f"{seen % 'log.clientHeight / 4'}.length")
    for size in (360, 500), upright, sideways, upright, sideways:
        ann.resize(*size, True)
        ann.value(TWO_FRAMES)
        first, last = (ann.value(f"{seen % edge}.length") for edge in ("1", "log.clientHeight"))
        assert first <= upper <= last
    assert not ann.value("following")


def test_a_reader_stays_where_it_is_among_5000_rows_at_most(bob: Peer, ann: Page) -> None:
    ann.value("for (let row = 0; row < MAX_ROWS; row++) show('said', `${row}.`); settle()")
    ann.value(TWO_FRAMES)
    ann.value("show('said', 'short'); settle()")
    ann.value(f"show('said', '{LONG}'); settle(); {TWO_FRAMES}")
    assert ann.value("log.childElementCount") == 5000
    ann.wait_for(IS_LOW)
    ann.value("log.scrollTop -= 300")
    ann.wait_for("!following")
    before = ann.value(SEEN)
    for count in 1, 100:
        bob.send("".join(f"{number} of {count}\n" for number in range(count)))
        ann.wait_for(f"log.lastChild.innerText.endsWith(' of {count}') && !settling")
        assert ann.value("log.childElementCount") == 5000
        assert ann.value(SEEN) == before
    shows(ann, "New messages: 101")
    ann.click("#jump")
    ann.wait_for(IS_LOW)
    assert ann.value("page.jump.hidden")


def test_everything_can_be_read_and_touched(room: WebRoom, bob: Peer, page: Page) -> None:
    small = (
        "[...document.querySelectorAll('button, input, textarea, summary')]"
        ".filter((one) => one.offsetHeight && one.offsetHeight < 44).map((one) => one.outerHTML)"
    )

    def check() -> None:
        assert page.value(small) == []
        for scheme in "dark", "light":
            page.prefer("prefers-color-scheme", scheme)
            assert page.value(LOW_CONTRAST) == page.value(NO_RING) == []

    page.open(room.url)
    for size in SIZES.values():
        page.resize(*size)
        check()
    join(page, "Ann")
    bob.send("w" * 500 + "\n/msg Ann: secret\n")
    # Names of all hues, on all that can be behind them.
    page.value(
        "for (let sum = 0; sum < 24; sum++) for (const kind of ['said', 'own', 'private']) "
        "show(kind, 'text', String.fromCharCode(97 + sum))"
    )
    shows(page, "secret")
    page.value("mark(show('own', 'text'), 'perhaps not sent'); settle()")
    for size in SIZES.values():
        page.resize(*size)
        page.value(f"{TWO_FRAMES}.then(() => {{ page.who.open = true; }})")
        page.wait_for("page.list.innerText === 'Ann (you)\\nBob'")
        check()
        assert page.value("document.documentElement.scrollWidth") == size[0]
        assert page.value("log.scrollWidth === log.clientWidth")
        assert page.value("document.documentElement.scrollHeight") == size[1]
        font_size = "parseFloat(getComputedStyle(box).fontSize)"
        assert page.value(font_size) >= 16
        page.call("Page.setFontSizes", fontSizes={"standard": 24})  # as some users have it
        page.wait_for(f"{font_size} === 24")
        page.call("Page.setFontSizes", fontSizes={"standard": 16})
    room.server.kill()
    shows(page, "Not connected")
    check()


def test_the_people_stand_beside_the_messages(room: WebRoom, bob: Peer, ann: Page) -> None:
    let_seconds_pass(ann, 0)  # in which it would ask who is here
    others = [room.server.join()]
    others[0].send("Note: buy milk\n")  # whoever came in silence is counted when they speak
    ann.wait_for("page.count.innerText === '3 here'")
    others.append(room.server.join())
    ann.value("page.who.open = false")
    ann.click("summary")  # the unnamed come in silence
    ann.wait_for("page.list.innerText === 'Ann (you)\\nBob\\n2 unnamed'")
    assert ann.value("page.count.innerText") == "4 here"
    assert not [row for row in rows(ann) if "here:" in row], "it wasn't the user who asked"
    box = "document.querySelector('%s').getBoundingClientRect()"
    assert ann.value(f"{box % '#list'}.left >= {box % '#log'}.right")
    bob.send("/name Bert\n")
    carl = room.server.join("Carl")
    ann.wait_for("page.list.innerText.startsWith('Ann (you)\\nBert\\nCarl')")
    carl.send("/quit\n")
    ann.wait_for("!page.list.innerText.includes('Carl')")
    ann.click("#box")
    say(ann, "/who")
    shows(ann, "here: Ann, Bert and 2 unnamed")


def test_on_a_phone_the_people_are_in_a_panel(bob: Peer, ann: Page) -> None:
    ann.resize(*SIZES["phone"])
    ann.wait_for("!page.who.open")
    assert ann.value("log.getBoundingClientRect().width") == SIZES["phone"][0]
    focused = "document.activeElement.id || document.activeElement.innerText"
    for place in "log", "count":
        ann.press("Tab", SHIFT)
        assert ann.value(focused) == place
    ann.press("Enter")
    ann.wait_for("page.list.innerText === 'Ann (you)\\nBob'")
    ann.press("Tab")
    assert ann.value(focused) == "Bob"
    ann.press("Enter")
    assert ann.value("[box.value, document.activeElement.id]") == ["/msg Bob: ", "box"]
    nodes = ann.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "log", "status", "DisclosureTriangle", "heading", "link"}
    found = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    }
    assert {("log", "Messages"), ("textbox", "Message"), ("button", "Send")} <= found
    assert all(name for role, name in found if role != "status")
    for close in partial(ann.press, "Escape"), partial(ann.click, "#log"):
        ann.click("summary")
        ann.wait_for("page.who.open")
        close()
        ann.wait_for("!page.who.open")
    ann.value("box.value = ''; box.focus()")
    ann.type("psst")
    ann.click("summary")
    ann.click("#list button")
    ann.wait_for("!page.who.open")
    assert ann.value("box.value") == "/msg Bob: psst"
    ann.value("box.value = 'psst'")
    bob.send("Hello\n")
    shows(ann, "Bob: Hello")
    ann.click("#log b")
    assert ann.value("box.value") == "/msg Bob: psst"
    ann.press("Enter")
    bob.expect("Ann (private): psst\n")
    ann.pull(150, 600)  # which, on most pages, loads them again
    ann.pull(600, 150)
    say(ann, "still here")
    bob.expect("Ann: still here\n")


# The connection


def test_a_closed_room_asks_for_its_password_and_a_reload_leads_back(
    start: Start, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_PASSWORD", "open sesame")
    room = WebRoom(start, "--history", "10")
    page.open(room.url)
    page.value(
        "window.seen = []; new MutationObserver(() => seen.push(page.room.hidden))"
        ".observe(page.room, { attributes: true })"
    )
    knock(page, "Ann")
    page.wait_for("document.activeElement.id === 'secret'")
    assert not page.value("socket"), "nobody waits at the door for what a person types"
    page.type("guess")
    page.press("Enter")
    shows(page, "That is not the password.")
    assert False not in page.value("seen"), "nothing of the room was shown"
    page.type("open sesame")
    page.press("Enter")
    shows(page, "Welcome to the chatroom!")
    settled(page)
    page.value("show('said', '\"'.repeat(3e6))")  # more than a browser keeps
    say(page, "One")
    settled(page)
    page.value("show('private', 'Two', 'Bob')")
    say(page, "/ignore Eve")
    page.type("Half a li")
    page.call("Page.reload")
    page.wait_for("document.readyState === 'complete' && isReady")
    assert page.value("[...ignored.keys(), unread]") == ["eve", 0]
    page.type("ne")
    page.value("settle()")
    assert page.value("[me, box.value]") == ["Ann", "Half a line"]
    assert rows(page, ".own") == ["Ann: One"]
    assert rows(page, ".private") == ["Bob (private): Two"]
    assert rows(page, ".said") == [], "the room's history has what is there already"
    assert len(rows(page, ".gap")) == 1
    page.value("box.value = '/quit'")
    page.press("Enter")
    shows(page, "You have left.")
    page.type("Not said")
    page.call("Page.reload")
    page.wait_for("document.readyState === 'complete' && document.activeElement.id === 'nick'")
    assert page.value("[box.value, password, log.childElementCount]") == ["Not said", "", 1]


def test_what_did_not_arrive_is_marked(start: Start, room: WebRoom, bob: Peer, ann: Page) -> None:
    say(ann, "This arrives")
    bob.expect("Ann: This arrives\n")
    settled(ann)
    room.server.process.send_signal(signal.SIGSTOP)
    say(ann, "This does not")
    kept = ann.value("JSON.parse(keep('sessionStorage')).rows.map((row) => row[1])")
    assert kept[1:] == ["Ann: This arrives", "Ann: This does not (perhaps not sent)"]
    ann.type("Half a li")
    room.server.kill()
    shows(ann, "perhaps")
    assert rows(ann, ".own") == ["Ann: This arrives", "Ann: This does not (perhaps not sent)"]
    ann.wait_for("wait === 4")  # it tries by itself
    ann.value("wait = 20")
    ann.click("#again")
    ann.wait_for("wait === 30")  # tries get rarer
    ann.value("box.focus()")
    ann.type("ne")
    ann.press("Enter")
    assert ann.value("box.value") == "Half a line"
    again = WebRoom(start, "--port", str(room.server.port), "--web", str(room.web))
    bob = again.server.join("Bob")
    ann.value("dispatchEvent(new Event('online'))")
    bob.expect("* Ann joined\n", "Ann: Half a line\n")  # as Enter was pressed
    assert ann.value("wait") == 30, "it may break off again at once"
    ann.value("joinedAt -= 6000")
    ann.value("lose({ code: 1006 })")
    assert ann.value("wait") == 2


@pytest.mark.parametrize("room", [["--history", "10"]], indirect=True)
def test_the_history_is_not_shown_twice(room: WebRoom, bob: Peer, page: Page) -> None:
    bob.send("one\n")
    room.server.join().expect("Bob: one\n")
    room.enter(page, "Ann")
    shows(page, "Bob: one")
    assert not page.value("document.querySelector('#log .said b')"), "others may have these names"
    assert not page.value("document.querySelector('#log .said time').innerText"), "nobody knows it"
    settled(page)
    room.server.process.send_signal(signal.SIGSTOP)
    say(page, "two")
    bob.send("three\n")  # the others may hear that before it
    room.server.process.send_signal(signal.SIGCONT)
    shows(page, "Bob: three")
    settled(page)
    page.value("socket.close(); lose({ code: 1006 })")
    bob.read_until("* Ann left\n")
    bob.send("four\n")
    room.server.join().read_until("Bob: four\n")
    page.value("connect()")
    shows(page, "four")
    talk = [row for row in rows(page) if ": " in row]
    assert talk == ["Bob: one", "Ann: two", "Bob: three", "Bob: four"]
    assert not rows(page, ".gap")[0].endswith("messages may be missing")
    # What is new is what follows the last three lines that were there.
    long = ["0"] * 20_000 + ["a", "b", "c"] + ["0"] * 4000
    for history, new, missing in (
        (["a", "b", "c", "b", "c"], ["b", "c"], False),
        (["a", "b", "c"], [], False),
        (["a", "b", "c", "x", "a", "b", "c"], ["x", "a", "b", "c"], False),  # who repeats hides none
        (["b", "c", "d"], ["b", "c", "d"], True),
        (["xa", "b", "c", "d"], ["xa", "b", "c", "d"], True),
        ([], [], True),
        (long, ["0"] * 4000, False),
    ):
        page.value("log.replaceChildren(); lostAt = Date.now()")
        page.value("for (const line of 'zabc') show('said', line); settle()")
        page.value(f"catchUp({json.dumps(history)}); settle()")
        assert rows(page, ".said")[4:] == new
        assert rows(page, ".gap")[0].endswith("messages may be missing") == missing


def test_a_silent_connection_is_lost(room: WebRoom, bob: Peer, page: Page) -> None:
    page.before_load(
        "{ const send = WebSocket.prototype.send; window.outgoing = [];"
        "WebSocket.prototype.send = function (line) { outgoing.push(line); send.call(this, line); };"
        "}"
    )
    room.enter(page, "Ann")
    settled(page)
    page.value("page.who.open = false; silence = 0; outgoing = []")
    let_seconds_pass(page, 11)
    assert page.value("outgoing") == []
    room.server.process.send_signal(signal.SIGSTOP)
    let_seconds_pass(page, 6)
    assert page.value("outgoing") == ["/ping"]
    room.server.process.send_signal(signal.SIGCONT)
    page.wait_for("!sent.length && silence === 0")
    assert rows(page, ".notice") == ["Welcome to the chatroom!"]
    for event in "", "visibilitychange", "online", "pageshow":
        room.server.process.send_signal(signal.SIGSTOP)
        if event:  # whoever is back learns it at once
            page.value("outgoing = []")
            page.value(f"document.dispatchEvent(new Event('{event}', {{ bubbles: true }}))")
            assert page.value("outgoing") == ["/ping"]
            let_seconds_pass(page, 5)
        else:
            say(page, "This may not")
            let_seconds_pass(page, 18)
            assert rows(page, ".own") == ["Ann: This may not (perhaps not sent)"]
        shows(page, "Not connected.")
        room.server.process.send_signal(signal.SIGCONT)
        page.value("connect()")
        settled(page)
    shows(page, "Not connected from")
    room.server.process.send_signal(signal.SIGSTOP)
    page.value("lose({ code: 1006 }); connect()")
    let_seconds_pass(page, 18)  # nor is a connection waited for that nobody answers
    shows(page, "Not connected.")


def test_a_full_room_is_tried_again(start: Start, page: Page) -> None:
    room = WebRoom(start, "--max-clients", "1")
    bob = room.server.join("Bob")
    page.open(room.url)
    knock(page, "Ann")
    shows(page, "The room is full.")
    bob.send("/quit\n")
    bob.rest()
    bob.close()
    shows(page, "Welcome to the chatroom!")
    page.value("window.history.replaceState(null, '', '/chat/')")  # the path is a proxy's
    assert page.value("connect(), socket.url") == f"ws://127.0.0.1:{room.web}/chat/"


@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_through_tls_without_a_name_or_storage(room: WebRoom, bob: Peer, page: Page) -> None:
    page.call("Security.setIgnoreCertificateErrors", ignore=True)
    page.before_load(
        "Object.defineProperty(window, 'localStorage', "
        "{ get() { throw new DOMException('forbidden', 'SecurityError'); } })"
    )
    room.enter(page)
    say(page, "Hello")
    bob.expect("Hello\n")
    assert rows(page, ".own") == ["Hello"]
    assert page.requests == [room.url, room.url.replace("https", "wss")]
