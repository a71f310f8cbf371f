"""The QR code of the page's address."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Server, Terminal, path_of

from chat_server import qr_code

URL = "http://192.0.2.7:7080/"
# What another program makes of that with the same level, version and mask.
KNOWN = """
#######   #    ## #######
#     #  #    ##  #     #
# ### # #  #   ## # ### #
# ### #  #  #   # # ### #
# ### #  #  #  ## # ### #
#     #   #### ## #     #
####### # # # # # #######
        #  # #  #        
### #####   ###  ##   #  
# # ##   # ## #   ##    #
  #####   ### # # ### ###
## #   # ## ##  #####  # 
 ###  ##  ## #### ## # ##
 ####   #### ##  ### #  #
# #   ####    # ## ## ###
 ##  # # # # #   ### # # 
# # # ####  ### ######   
        #####   #   #####
####### #  ### ## # #  ##
#     # ### #####   ## ##
# ### # #  #  # #####  ##
# ### #    #   ###  # #  
# ### # #    # # #  ##  #
#     # #  #   ###  ## # 
####### ### #   # ##   ##
"""


def modules(rows: list[str]) -> list[list[bool]]:
    """Returns what is dark in the code that these half blocks show."""
    halves = [[" \u2584\u2580\u2588".index(char) for char in row] for row in rows]
    return [[not half & bit for half in row] for row in halves for bit in (2, 1)]


def decode(rows: list[str], folder: Path) -> str:
    """Returns what a scanner reads where these rows are shown."""
    if not shutil.which("zbarimg"):
        pytest.skip("zbarimg is not installed")
    dots = [[dark for dark in row for _ in range(4)] for row in modules(rows) for _ in range(4)]
    lines = [" ".join("01"[dark] for dark in row) for row in dots]
    file = folder / "code.pbm"
    file.write_text("\n".join(["P1", f"{len(dots[0])} {len(dots)}", *lines, ""]))
    command = ["zbarimg", "--quiet", "--raw", str(file)]
    scanned = subprocess.run(command, capture_output=True, text=True, check=True)
    return scanned.stdout.rstrip("\n")


def test_a_known_code() -> None:
    shown = modules(qr_code(URL.encode()))
    known = [line.ljust(25) for line in KNOWN.strip("\n").split("\n")]
    blank = [[False] * 33] * 4
    assert shown[:4] == blank
    assert shown[29:33] == blank
    inner = [[False] * 4 + [char == "#" for char in line] + [False] * 4 for line in known]
    assert shown[4:29] == inner


@pytest.mark.parametrize("size", [1, 17, 18, 32, 33, 53, 54, 78, 79, 106])
def test_a_scanner_reads_every_version(size: int, tmp_path: Path) -> None:
    text = (URL * 5)[:size]
    assert decode(qr_code(text.encode()), tmp_path) == text


def test_what_is_too_long_has_no_code() -> None:
    assert qr_code(b"x" * 107) == []


def test_a_terminal_shows_the_address(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    options = "--host", "127.0.0.1", "--port", "0", "--web", "0"
    screen = terminal(sys.executable, path_of("chat_server.py"), *options)
    screen.expect("in a browser: ")
    url = screen.expect("\n")
    size = len(qr_code(url.encode())[0])
    rows = [screen.expect("\n")[-size:] for _ in range((size + 1) // 2)]
    assert decode(rows, tmp_path) == url


def test_a_log_has_none_of_it(start: Callable[..., Server]) -> None:
    server = start("chat_server.py", web=True)
    server.stop()
    assert not re.search("[\u2580-\u259f]", server.log())
