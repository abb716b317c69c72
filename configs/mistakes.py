"""What is wrong with a config, in words: key, limit, remedy."""

from __future__ import annotations

import difflib
from typing import Any


def missing_values(raw: Any, prefix: str = "") -> dict[str, str]:
    """Required values (`???`) that nobody gave."""
    found: dict[str, str] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            found |= missing_values(value, f"{prefix}{key}.")
        elif value == "???":
            found[prefix + key] = f"{prefix}{key} is required: give {prefix}{key}=..."
    return found


def location_of(item: Any) -> tuple[str | int, ...]:
    # A union of configs adds the chosen variant to the path: data.digits.input.size is data.input.size.
    head, *rest = item["loc"] or ("",)
    if head in ("data", "optim", "sampling") and rest and isinstance(rest[0], str):
        rest = rest[1:]
    return (head, *rest)


def _instead(unknown: set[tuple[str | int, ...]], location: tuple[str | int, ...], raw: Any) -> str:
    *path, wrong = location
    for part in path:
        raw = raw[part]
    known = [key for key in raw if (*path, key) not in unknown]
    close = difflib.get_close_matches(str(wrong), known, 1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"


def describe(item: Any, missing: dict[str, str], raw: Any, unknown: set[tuple[str | int, ...]]) -> str:
    location = location_of(item)
    key = ".".join(str(part) for part in location)
    if key in missing:
        return missing[key]
    if location in unknown:
        return f"{key}: unknown key; {_instead(unknown, location, raw)}"
    context = item.get("ctx", {})
    messages = {
        "missing": "missing; a value for it belongs into the YAML file",
        "missing_argument": "missing; a value for it belongs into the YAML file",
        "union_tag_not_found": "has no name; choose one of its variants on the command line",
        "union_tag_invalid": f"unknown name, choose from {context.get('expected_tags')}",
        "value_error": str(context.get("error", "")),
    }
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, list)) else ""
    text = messages.get(item["type"], item["msg"])
    return f"{key}: {text}{shown}" if key else f"{text}{shown}"
