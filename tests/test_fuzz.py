"""Whole rooms at random, each against the model of it in fuzz.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz import play
from support import Start


@pytest.mark.parametrize("seed", map(int, os.environ.get("SEEDS", "0 1 4 7").split()))
def test_everyone_hears_all_once_and_in_one_order(start: Start, tmp_path: Path, seed: int) -> None:
    """The room checks its invariants after each turn. Set SEEDS, to "$(seq 99)" say, for more."""
    assert play(start, tmp_path, seed, days=2, steps=120).count >= 25
