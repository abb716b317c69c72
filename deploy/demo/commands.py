"""The command lines that turn a camera or a video into frames on a pipe, for ffmpeg and for GStreamer.

Each frame says its own size: ffmpeg writes PPM files one after the other, GStreamer the parts of a multipart
stream, whose rows have the width that was asked for. The programs are children of ours and no libraries:
what crashes in a driver or a decoder ends a child, and nothing need be compiled for this Python.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import LabError
from deploy.power_meters import is_jetson

Which = Callable[[str], str | None]
FRAMES = 3
"""Where GStreamer's frames go. Argus writes on stdout what it does, in the middle of a frame if need be."""
CSI_SIZE = (1280, 720)
"""Of the sensor modes that drivers of CSI cameras offer the one that nearly all have; Argus scales to it."""
_ARGUS_AT_WORK = ("GST_ARGUS:", "CONSUMER:")
_REMEDY = "apt install ffmpeg, or gstreamer1.0-tools and gstreamer1.0-plugins-good"


@dataclass(frozen=True)
class Command:
    """What to start, and how the frames come: as PPM files on its stdout, or as parts on descriptor FRAMES.

    reads: how the program calls its input. width: of each row in px, for `parts` only.
    """

    argv: tuple[str, ...]
    layout: Literal["ppm", "parts"]
    reads: str = ""
    width: int | None = None

    def reason(self, said: str) -> str | None:
        """One line of what it said on stderr; None where it said nothing."""
        reason = _ffmpeg_reason(said) if self.layout == "ppm" else _gstreamer_reason(said)
        return reason and without_password(reason.removeprefix(f"{self.reads}: "))


def without_password(text: str) -> str:
    """A URL's user and password taken out, for what is shown to viewers."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def camera(
    device: str,
    width: int,
    *,
    jetson: bool | None = None,
    root: Path = Path("/"),
    which: Which = shutil.which,
) -> Command:
    """Of `camera:0`, `camera:/dev/video0` or `csi:0`.

    On a Jetson a number means the CSI sensor of that number where the kernel has one, else /dev/videoN as
    everywhere. ffmpeg goes first for V4L2, because it asks the camera for a size and a rate by themselves;
    GStreamer would take the largest picture that the camera knows. Raises LabError where neither is there.
    """
    jetson = is_jetson(root) if jetson is None else jetson
    kind, _, name = device.partition(":")
    if kind == "csi" or (jetson and name.isdigit() and _is_csi(int(name), root)):
        if not which("gst-launch-1.0"):
            raise LabError(f"{device}: needs GStreamer: apt install gstreamer1.0-tools nvidia-l4t-gstreamer")
        return _csi(int(name), width)
    path = f"/dev/video{name}" if name.isdigit() else name
    if which("ffmpeg"):
        source = ["-f", "v4l2", "-framerate", "30", "-video_size", "640x480", "-i", path]
        return _ffmpeg(source, width)
    if which("gst-launch-1.0"):
        caps = ",width=[1,1280],framerate=[5/1,60/1]"
        wanted = f"video/x-raw{caps};image/jpeg{caps}"
        return _gstreamer(["v4l2src", f"device={_quoted(path)}", "!", wanted, "!", "decodebin"], width, False)
    raise LabError(f"{device}: reading a camera needs ffmpeg or GStreamer: {_REMEDY}")


def video(address: str, width: int, *, jetson: bool | None = None, which: Which = shutil.which) -> Command:
    """Of a file or a URL, at its own rate. On a Jetson GStreamer goes first, whose decoders are in hardware.

    Raises LabError where neither program is there.
    """
    jetson = is_jetson() if jetson is None else jetson
    ffmpeg, gstreamer = which("ffmpeg"), which("gst-launch-1.0")
    if not ffmpeg and not gstreamer:
        raise LabError(f"{address}: playing a video needs ffmpeg or GStreamer: {_REMEDY}")
    url = "://" in address
    live = address.startswith("rtsp")
    if ffmpeg and not (jetson and gstreamer):
        # A live stream comes at its own rate; to hold it to that once more would let it lag.
        pace = ["-rtsp_transport", "tcp"] if live else ["-re"]
        return _ffmpeg([*pace, "-i", address if url else f"file:{address}"], width)
    uri = address if url else Path(address).absolute().as_uri()
    decode = ["uridecodebin", f"uri={_quoted(uri)}"]
    # Takes pictures out of the memory of the hardware's decoder, and passes others on.
    decode += ["!", "nvvidconv", "!", "video/x-raw,format=I420"] if jetson else []
    return _gstreamer(decode, width, sync=not live)


def _is_csi(number: int, root: Path) -> bool:
    """Tegra's driver for CSI names its nodes `vi-output, SENSOR`; Argus finds some sensors without a node."""
    try:
        name = (root / f"sys/class/video4linux/video{number}/name").read_text(errors="replace")
    except OSError:
        return True
    return name.startswith("vi-output")


def _csi(number: int, width: int) -> Command:
    raw = f"width={CSI_SIZE[0]},height={CSI_SIZE[1]},framerate=30/1,format=NV12"
    source = ["nvarguscamerasrc", f"sensor-id={number}", "!", f"video/x-raw(memory:NVMM),{raw}"]
    return _gstreamer([*source, "!", "nvvidconv", "!", "video/x-raw,format=I420"], width, False)


def _ffmpeg(source: list[str], width: int) -> Command:
    # -2: the height that keeps the shape, made even. Nothing is enlarged.
    scale = f"scale=w='min(iw,{width})':h=-2"
    quiet = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin"]
    frames = ["-an", "-sn", "-vf", scale, "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    return Command((*quiet, *source, *frames), "ppm", reads=source[-1])


def _gstreamer(source: list[str], width: int, sync: bool) -> Command:
    width -= width % 4  # rows are filled up to 4 bytes
    # The height is left free and keeps the shape. A frame that nobody has taken yet gives way to a new one.
    steps = [
        *source,
        *("!", "videoflip", "video-direction=auto"),
        *("!", "videoscale", "!", f"video/x-raw,width={width},pixel-aspect-ratio=1/1"),
        *("!", "videoconvert", "!", "video/x-raw,format=RGB"),
        *("!", "multipartmux", "boundary=frame", "!", "fdsink", f"fd={FRAMES}", f"sync={str(sync).lower()}"),
    ]
    return Command(("gst-launch-1.0", "-q", *steps), "parts", width=width)


def _quoted(value: str) -> str:
    """As gst-launch reads it, which parses its arguments once more."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ffmpeg_reason(said: str) -> str | None:
    """The last line that says something, without the address of the part that says it."""
    lines = [re.sub(r"^(\[[^]]* @ 0x[0-9a-f]+\] )+", "", line.strip()) for line in said.splitlines()]
    return next((line for line in reversed(lines) if line and line != "Conversion failed!"), None)


def _gstreamer_reason(said: str) -> str | None:
    """The first error: what follows it are its consequences."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_ARGUS_AT_WORK)]
    missing = next((line for line in lines if line.startswith("Missing decoder")), None)
    if missing:
        what = missing.partition("(")[0].strip()
        return f"{what}: apt install gstreamer1.0-libav, or ffmpeg"
    absent = next((line for line in lines if line.startswith("WARNING: erroneous pipeline:")), None)
    if absent:
        return absent.removeprefix("WARNING: erroneous pipeline: ")
    argus = re.search(r"^Error generated\. \S+, \w+:\d+ (.+)$", said, re.MULTILINE)
    if argus:
        return argus[1].strip()
    error = next((line for line in lines if line.startswith("ERROR: from element")), None)
    if error:
        return error.partition(": ")[2].partition(": ")[2] or error
    return lines[-1] if lines else None
