"""Lists of numbers and names, and settings, as a user writes them."""

from __future__ import annotations

import json
from typing import Any


def ranges(text: str) -> tuple[int, ...]:
    """Reads "5000-5019,7" as the numbers it names, in that order.

    Raises:
      ValueError: a part that is neither a number nor a range that rises.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit()) or int(last or first) < int(first):
            raise ValueError(f"{text!r}: part {part!r}, expected numbers and ranges such as 5000-5019,7.")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def words(text: str) -> tuple[str, ...]:
    """Reads "a, b" as ("a", "b")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def setting(text: str) -> tuple[str, Any]:
    """Reads "side=192" as ("side", 192); a value that is not JSON stays text.

    Raises:
      ValueError: no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
