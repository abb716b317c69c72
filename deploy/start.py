"""From a .pyz that is running to `python -m deploy` in its unpacked files."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.archive import open_archive
from deploy.errors import LabError
from deploy.unpack import APP, unpacked


def start(archive: str) -> int:
    """The exit code of the command in sys.argv, which works on the archive's own bundle."""
    try:
        path = Path(archive).absolute()
        folder = unpacked(open_archive(path))
        _check_numpy()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # From here on no code comes from the archive: Python compiles an unpacked file once and not at each
    # start.
    for name in [name for name in sys.modules if name.partition(".")[0] == "deploy"]:
        del sys.modules[name]
    sys.path[:1] = [str(folder / APP), str(folder / APP / "vendor")]
    from deploy.__main__ import main

    return main(own=folder / "bundle", archive=path)


def _check_numpy() -> None:
    try:
        import numpy  # noqa: F401  # only whether it can be
    except ImportError as error:
        raise LabError(
            f"numpy cannot be imported by {sys.executable} ({error}): {sys.executable} -m pip install numpy, "
            "or sudo apt install python3-numpy"
        ) from error
