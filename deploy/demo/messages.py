"""What the server tells the page, as plain JSON types."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.demo.limits import MAX_BODY, MAX_PIXELS
from deploy.demo.show import Answer, Lane, Shown, Status

_HEADER = struct.Struct(">II")


def frame(text: bytes, picture: bytes) -> bytes:
    """A message of the stream: both lengths as big-endian uint32, the JSON, the JPEG (none: as before)."""
    return _HEADER.pack(len(text), len(picture)) + text + picture


def stream_json(title: str, shown: Shown | None, status: Status) -> bytes:
    return _encode(
        {
            "title": title,
            "limits": {"bytes": MAX_BODY, "pixels": MAX_PIXELS},
            "shown": None if shown is None else shown_dict(shown),
            "status": {
                "source": status.source,
                "state": status.state,
                "message": status.message,
                "fps": status.fps,
                "lane_fps": status.lane_fps,
                "watts": status.watts,
                "watts_of": status.watts_of,
                "watts_missing": status.watts_missing,
                "lanes": [_lane(lane) for lane in status.lanes],
                "choices": [_lane(lane) for lane in status.choices],
            },
        }
    )


def shown_json(shown: Shown) -> bytes:
    return _encode({"shown": shown_dict(shown)})


def error_json(text: str) -> bytes:
    """In one line, whatever a library put into the text."""
    return _encode({"error": " ".join(text.split())})


def shown_dict(shown: Shown) -> dict[str, Any]:
    """agree: whether all name the same class first; None with fewer than two that name any."""
    return {
        "number": shown.number,
        "height": shown.image.shape[0],
        "width": shown.image.shape[1],
        "preprocess_ms": _number(shown.preprocess_ms),
        "answers": [_answer(answer) for answer in shown.answers],
        "agree": agree(shown.answers),
    }


def agree(answers: Sequence[Answer]) -> bool | None:
    firsts = [answer.top[0].name for answer in answers if answer.top]
    return len(set(firsts)) == 1 if len(firsts) > 1 else None


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        **_lane(answer.lane),
        "precision": answer.precision,
        "latency_ms": None if answer.error else _number(answer.latency_ms),
        "error": answer.error,
        "top": [{"name": guess.name, "probability": _number(guess.probability)} for guess in answer.top],
    }


def _lane(lane: Lane) -> dict[str, str]:
    return {"variant": lane.variant, "backend": lane.backend}


def _number(value: float) -> float | None:
    """JSON has no NaN, and a broken network does."""
    return float(value) if math.isfinite(value) else None


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
