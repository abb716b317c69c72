"""The running demo: what captures, what classifies and what reads the watts, as one show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from deploy.backends import cpu_threads
from deploy.bundle import Bundle
from deploy.demo.capture import Capture
from deploy.demo.classifier import Classifier
from deploy.demo.lanes import check_lane, choices, default_sides
from deploy.demo.show import Lane, Show, Shown, Status
from deploy.demo.side import Side, open_side
from deploy.demo.sources import find_source
from deploy.demo.watts import Watts
from deploy.errors import LabError
from deploy.power import PowerMeter
from deploy.power_meters import find_meter
from deploy.preprocess import Image

WIDTH = 640
"""Moving pictures are at most so wide, or twice what the network's resize takes where that is more."""
_FIRST_PICTURE_S = 10.0  # that a video's is waited for


@contextmanager
def open_show(
    bundle: Bundle,
    source: str,
    lanes: Sequence[Lane] | None = None,
    threads: int | None = None,
    *,
    loop: bool = True,
) -> Iterator[Show]:
    """The demo of a bundle that classifies images; it runs until the `with` ends.

    source: see `deploy/demo/sources.py`. lanes: what runs side by side; None for FP32 and INT8, each by the
    best backend that can be opened here. threads: of a query, all usable cores when None. loop: whether a
    video or a folder begins again at its end.

    A lane that cannot be opened says why, and the others run. Raises LabError for a bundle that is no
    classifier of images, a source that is not there, a video that cannot be played, a lane that there is not,
    and where no lane can be opened.
    """
    spec = bundle.input
    if spec is None or bundle.class_output is None or not spec.class_names:
        lacks = "takes no image files" if spec is None else "names no classes"
        raise LabError(f"bundle {bundle.root}: its model {lacks}; the demo shows classifiers of images")
    cpu_threads(threads)
    for lane in lanes or ():
        check_lane(bundle, lane)
    found = find_source(source, max(WIDTH, 2 * spec.resize), loop)
    offered = choices(bundle)
    tries = default_sides(bundle, offered) if lanes is None else [[lane] for lane in lanes]
    with ExitStack() as stack:
        sides = _open_sides(bundle, tries, threads)
        classifier = stack.enter_context(Classifier(bundle, sides, threads))
        watts = stack.enter_context(Watts(partial(_find_meter, sides)))
        capture = stack.enter_context(Capture(found, classifier.take))
        if found.is_video:
            capture.wait_for_first(_FIRST_PICTURE_S)
            state, message = capture.state()
            if state == "failed":
                raise LabError(message)
        yield _Running(found.name, offered, capture, classifier, watts)


class _Running:
    """See :class:`deploy.demo.show.Show`."""

    def __init__(
        self, source: str, offered: tuple[Lane, ...], capture: Capture, classifier: Classifier, watts: Watts
    ) -> None:
        self._source, self._offered = source, offered
        self._capture, self._classifier, self._watts = capture, classifier, watts

    def latest(self) -> Shown | None:
        return self._classifier.latest()

    def status(self) -> Status:
        state, message = self._capture.state()
        drawn, sides = self._watts.drawn(), self._classifier.sides()
        lines = [message, *(line for side in sides for line in (side.note, side.error))]
        return Status(
            source=self._source,
            state=state,
            message="; ".join(line for line in lines if line) or None,
            fps=self._classifier.fps(),
            lane_fps=tuple(side.rate() for side in sides),
            watts=drawn.watts,
            watts_of=drawn.rail,
            watts_missing=drawn.missing,
            lanes=tuple(side.lane for side in sides),
            choices=self._offered,
        )

    def on_new(self, call: Callable[[], None]) -> Callable[[], None]:
        return self._classifier.on_new(call)

    def switch(self, side: int, lane: Lane) -> None:
        self._classifier.switch(side, lane)

    def classify(self, image: Image) -> Shown:
        return self._classifier.classify(image)


def _open_sides(bundle: Bundle, tries: Sequence[Sequence[Lane]], threads: int | None) -> list[Side]:
    """For each side the first of its lanes that opens. Raises LabError where none of them all does."""
    sides = [_open_first(bundle, lanes, threads) for lanes in tries]
    if not any(side.is_open for side in sides):
        reasons = "; ".join(side.error for side in sides if side.error)
        raise LabError(reasons or f"bundle {bundle.root}: none of its variants can be run here; see `doctor`")
    return sides


def _open_first(bundle: Bundle, lanes: Sequence[Lane], threads: int | None) -> Side:
    reasons = []
    for lane in lanes:
        try:
            side = open_side(bundle, lane, threads)
        except LabError as error:
            reasons.append(str(error))
        else:
            side.note = "; ".join(reasons) or None
            return side
    return Side(bundle, lanes[0], None, "; ".join(reasons))


def _find_meter(sides: Sequence[Side]) -> PowerMeter:
    """Of the GPU where one of the sides runs on it, else of the CPU; a Jetson has one for both."""
    return find_meter(device="gpu" if any(side.lane.backend == "tensorrt" for side in sides) else "cpu")
