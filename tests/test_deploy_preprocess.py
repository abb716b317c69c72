"""numpy's preprocessing is torchvision's, to a hair; and files arrive upright, in RGB."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess


def spec(size: int, resize: int) -> InputSpec:
    return InputSpec(size, resize, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ("a", "b"))


def by_torchvision(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], to: InputSpec) -> torch.Tensor:
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    shape = to.resized_shape(*image.shape[:2])
    resized = v2.functional.resize(pixels, list(shape), v2.InterpolationMode.BILINEAR, antialias=True)
    top, left = to.crop_offset(*shape)
    cut = resized[:, top : top + to.size, left : left + to.size]
    normalised: torch.Tensor = v2.functional.normalize(cut / 255, list(to.mean), list(to.std))
    return normalised


@pytest.mark.parametrize(
    ("height", "width", "size", "resize"),
    [
        (375, 500, 224, 256),  # shrinking, landscape
        (701, 333, 97, 111),  # odd, portrait, steep
        (17, 23, 64, 70),  # growing
        (32, 32, 32, 32),  # nothing to do
        (33, 64, 32, 33),  # height kept, width kept, crop odd
        (5, 900, 8, 9),  # a strip
        (1, 1, 4, 4),  # one pixel
        (2000, 1500, 224, 224),
    ],
)
def test_agrees_with_torchvision(height: int, width: int, size: int, resize: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    to = spec(size, resize)
    ours = preprocess(image, to)
    theirs = by_torchvision(image, to).numpy()
    assert ours.dtype == np.float32
    assert ours.shape == (3, size, size)
    # As fractions of full scale, before the normalisation stretches them. What is left is ATen's float32
    # arithmetic for the filter's position.
    std = np.array(to.std, np.float32).reshape(3, 1, 1)
    assert np.abs((ours - theirs) * std).max() < 1e-4


def test_channels_keep_their_place() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0] = 255
    out = preprocess(image, InputSpec(4, 5, (0.0, 0.25, 0.5), (1.0, 0.5, 2.0), ("a", "b")))
    np.testing.assert_allclose(out[:, 0, 0], [1.0, -0.5, -0.25], atol=1e-6)


def test_only_what_an_image_is() -> None:
    with pytest.raises(ValueError, match="must be uint8 H x W x 3, got float32"):
        preprocess(np.zeros((4, 4, 3), np.float32), spec(2, 2))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = (255, 128, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    assert upright.shape == (6, 4, 3)
    assert tuple(upright[0, 3]) == (255, 128, 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(file)
    image = load_image(file)
    assert image.dtype == np.uint8
    assert image.shape == (2, 3, 3)
    assert np.array_equal(image, np.full((2, 3, 3), 255))


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    Image.new("I;16", (3, 3)).save(tmp_path / "deep.png")
    for name, message in [
        ("empty.jpg", "cannot be read as an image"),
        ("text.png", "cannot be read as an image"),
        ("cut.jpg", "cannot be read as an image"),
        ("none.jpg", "No such file"),
        ("deep.png", "more than 8 bits a channel"),
    ]:
        with pytest.raises(LabError, match=rf"{name}: .*{message}"):
            load_image(tmp_path / name)


def test_without_pillow_and_opencv_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.png").touch()
    with pytest.raises(LabError, match="pip install pillow"):
        load_image(tmp_path / "a.png")
