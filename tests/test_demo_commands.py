"""Which program reads which source, with which arguments, and the line that is left of what it says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.demo.commands import Command, camera, video
from deploy.demo.sources import find_source
from deploy.errors import LabError

FFMPEG = ("ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin")
PPM = ("-an", "-sn", "-vf", "scale=w='min(iw,640)':h=-2", "-f", "image2pipe", "-c:v", "ppm", "pipe:1")


def having(*programs: str) -> Callable[[str], str | None]:
    return lambda program: f"/usr/bin/{program}" if program in programs else None


BOTH = having("ffmpeg", "gst-launch-1.0")


def pipeline(command: Command) -> list[str]:
    """The elements of a GStreamer pipeline, each with its properties."""
    assert command.argv[:2] == ("gst-launch-1.0", "-q")
    return " ".join(command.argv[2:]).split(" ! ")


TAIL = [
    "videoflip video-direction=auto",
    "videoscale",
    "video/x-raw,width=640,pixel-aspect-ratio=1/1",
    "videoconvert",
    "video/x-raw,format=RGB",
    "multipartmux boundary=frame",
]


def test_v4l2_is_asked_for_a_size_and_a_rate() -> None:
    found = camera("camera:1", 640, jetson=False, which=BOTH)
    source = ("-f", "v4l2", "-framerate", "30", "-video_size", "640x480", "-i", "/dev/video1")
    assert found.argv == (*FFMPEG, *source, *PPM)
    assert found.layout == "ppm"
    by_path = camera("camera:/dev/v4l/by-id/usb-x", 640, jetson=True, which=BOTH)
    assert "/dev/v4l/by-id/usb-x" in by_path.argv


def test_v4l2_without_ffmpeg_goes_by_gstreamer() -> None:
    found = camera("camera:0", 642, jetson=False, which=having("gst-launch-1.0"))
    source, wanted, *steps = pipeline(found)
    assert source == 'v4l2src device="/dev/video0"'
    assert wanted == (
        "video/x-raw,width=[1,1280],framerate=[5/1,60/1];image/jpeg,width=[1,1280],framerate=[5/1,60/1]"
    )
    assert steps == ["decodebin", *TAIL, "fdsink fd=3 sync=false"]
    assert (found.layout, found.width) == ("parts", 640)


@pytest.mark.parametrize("device", ["csi:1", "camera:1"])
def test_a_jetson_reads_its_csi_camera_by_argus(device: str, tmp_path: Path) -> None:
    assert pipeline(camera(device, 640, jetson=True, root=tmp_path, which=BOTH)) == [
        "nvarguscamerasrc sensor-id=1",
        "video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1,format=NV12",
        "nvvidconv",
        "video/x-raw,format=I420",
        *TAIL,
        "fdsink fd=3 sync=false",
    ]


@pytest.mark.parametrize(
    ("name", "first"), [("vi-output, imx219 9-0010", "gst-launch-1.0"), ("C920", "ffmpeg")]
)
def test_a_jetson_tells_a_usb_camera_from_a_csi_sensor(name: str, first: str, tmp_path: Path) -> None:
    node = tmp_path / "sys/class/video4linux/video0"
    node.mkdir(parents=True)
    (node / "name").write_text(f"{name}\n")
    assert camera("camera:0", 640, jetson=True, root=tmp_path, which=BOTH).argv[0] == first
    assert camera("csi:0", 640, jetson=False, root=tmp_path, which=BOTH).argv[0] == "gst-launch-1.0"


def test_a_file_plays_at_its_own_rate_whatever_its_name() -> None:
    found = video("a b:c.mp4", 640, jetson=False, which=BOTH)
    assert found.argv == (*FFMPEG, "-re", "-i", "file:a b:c.mp4", *PPM)
    source, *steps = pipeline(
        video('/films/a "b" 100%!.mp4', 640, jetson=False, which=having("gst-launch-1.0"))
    )
    assert source == 'uridecodebin uri="file:///films/a%20%22b%22%20100%25%21.mp4"'
    assert steps == [*TAIL, "fdsink fd=3 sync=true"]


def test_a_jetson_decodes_in_hardware_where_it_can() -> None:
    steps = pipeline(video("/x.mp4", 640, jetson=True, which=BOTH))
    assert steps[1:3] == ["nvvidconv", "video/x-raw,format=I420"]
    assert video("/x.mp4", 640, jetson=True, which=having("ffmpeg")).argv[0] == "ffmpeg"


def test_a_stream_comes_at_its_own_rate() -> None:
    assert video("rtsp://host/1", 640, jetson=False, which=BOTH).argv[5:9] == (
        "-rtsp_transport", "tcp", "-i", "rtsp://host/1",
    )  # fmt: skip
    assert "-re" in video("http://host/a.mp4", 640, jetson=False, which=BOTH).argv
    source, *steps = pipeline(video('rtsp://h/a!b"c', 640, jetson=False, which=having("gst-launch-1.0")))
    assert source == 'uridecodebin uri="rtsp://h/a!b\\"c"'
    assert steps[-1] == "fdsink fd=3 sync=false"


@pytest.mark.parametrize("which", [having(), having("ffprobe")])
def test_a_program_that_is_missing_is_named_with_its_command(which: Callable[[str], str | None]) -> None:
    with pytest.raises(LabError, match="apt install ffmpeg"):
        camera("camera:0", 640, jetson=False, which=which)
    with pytest.raises(LabError, match="apt install ffmpeg"):
        video("x.mp4", 640, jetson=False, which=which)
    with pytest.raises(LabError, match=r"apt install gstreamer1\.0-tools"):
        camera("csi:0", 640, jetson=True, which=which)


GST_MISSING = """ERROR: from element u: Your GStreamer installation is missing a plug-in.
Additional debug info:
Missing decoder: H.264 (High Profile) (video/x-h264, stream-format=(string)avc)
ERROR: pipeline doesn't want to preroll.
"""
# As users of JetPack 5 and 6 report it; earlier ones have a path before the file's name.
ARGUS = "Error generated. gstnvarguscamerasrc.cpp, execute:751 No cameras available\n"
GST_DEVICE = """ERROR: from element /GstV4l2Src:v4l2src0: Cannot identify device '/dev/video9'.
Additional debug info:
system error: No such file or directory
ERROR: pipeline doesn't want to preroll.
"""


@pytest.mark.parametrize(
    ("layout", "said", "line"),
    [
        ("ppm", "", None),
        (
            "ppm",
            "[mov,mp4 @ 0x55e3] moov atom not found\nfile:x.mp4: Invalid data found\n",
            "Invalid data found",
        ),
        (
            "ppm",
            "[rtsp @ 0xa1] [tcp @ 0xb2] refused by rtsp://me:secret@host/1\n",
            "refused by rtsp://host/1",
        ),
        ("ppm", "too many pixels\nConversion failed!\n\n", "too many pixels"),
        ("parts", "", None),
        ("parts", GST_MISSING, "Missing decoder: H.264: apt install gstreamer1.0-libav, or ffmpeg"),
        ("parts", GST_DEVICE, "Cannot identify device '/dev/video9'."),
        ("parts", 'WARNING: erroneous pipeline: no element "nvvidconv"\n', 'no element "nvvidconv"'),
        ("parts", f"GST_ARGUS: Cleaning up\n{ARGUS}GST_ARGUS: Done\n", "No cameras available"),
        (
            "parts",
            ARGUS.replace("gst", "/dvs/git/x/gst").replace("execute", "threadExecute"),
            "No cameras available",
        ),
        ("parts", "CONSUMER: Done Success\nGST_ARGUS: Done Success\n", None),
        ("parts", "something else\n", "something else"),
    ],
)
def test_one_line_is_left_of_what_a_program_says(layout: str, said: str, line: str | None) -> None:
    command = Command(("x",), layout, reads="file:x.mp4")  # type: ignore[arg-type]
    assert command.reason(said) == line


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="gst-launch-1.0 is not installed")
def test_gstreamer_takes_the_pipeline_of_a_v4l2_camera() -> None:
    command = camera("camera:/dev/no such", 640, jetson=False, which=having("gst-launch-1.0"))
    done = subprocess.run(command.argv, capture_output=True, text=True, check=False, timeout=60)
    assert command.reason(done.stderr) == "Cannot identify device '/dev/no such'."


def test_a_password_of_a_stream_is_not_shown() -> None:
    assert find_source("rtsp://me:secret@host/1", 640).name == "rtsp://host/1"


@pytest.mark.parametrize("source", ["camera:0", "csi:0", "rtsp://host/1", "x.mp4"])
def test_only_linux_reads_moving_pictures(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert find_source("upload", 640).pictures is None
    with pytest.raises(LabError, match="on Linux only; give a folder, or upload"):
        find_source(source, 640)
