"""tegrastats: the lines of every generation, and a running one that stops, hangs or says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploy.tegrastats
from deploy.errors import LabError
from deploy.power_meters import find_meter
from deploy.tegrastats import rails_of
from tests.device_trees import orin_nano
from tests.system_tree import Files, tegrastats, write_tree
from tests.tegrastats_lines import AGX_ORIN, LINES, ORIN_NANO, THOR, XAVIER


@pytest.mark.parametrize("name", LINES)
def test_a_line_gives_the_watts_of_this_moment(name: str) -> None:
    line, watts = LINES[name]
    assert rails_of(line) == pytest.approx(watts)
    assert rails_of(line + "\n") == pytest.approx(watts)


def test_a_line_without_power_gives_none() -> None:
    assert rails_of("RAM 2493/7620MB (lfb 1x4MB) SWAP 0/3810MB GR3D_FREQ 37%@[611] cpu@45.5C APE 200") == {}
    assert rails_of("tegrastats: permission denied") == {}
    assert rails_of("") == {}


def container(program: str) -> Files:
    """An Orin Nano whose monitors are not shown, as in most containers, and a tegrastats."""
    files = {name: text for name, text in orin_nano().items() if "hwmon" not in name}
    return files | {"usr/bin/tegrastats": program}


@pytest.mark.parametrize(
    ("line", "rail", "watts"),
    [
        (ORIN_NANO, "VDD_IN", 4.556),
        (THOR, "VIN", 15.004),
        (XAVIER, "GPU+CPU+SOC+CV+VDDRQ+SYS5V", 18.401 + 2.301 + 4.602 + 0.0 + 2.914 + 4.632),
        (AGX_ORIN, "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 2.399 + 0.400 + 4.032),
    ],
    ids=["orin nano", "thor", "xavier", "agx orin"],
)
def test_it_stands_in_where_the_monitors_are_not_shown(
    tmp_path: Path, line: str, rail: str, watts: float
) -> None:
    root = write_tree(tmp_path, container(tegrastats("tegrastats of a container", line)))
    with find_meter(root) as meter:
        first, second = meter.read(), meter.read()
    assert (meter.source, meter.rail, meter.hertz) == ("tegrastats", rail, 10)
    assert first.watts[rail] == pytest.approx(watts)
    assert set(first.watts) == set(meter.rails)
    assert second.seconds > first.seconds


def test_one_that_ends_at_once_says_how(tmp_path: Path) -> None:
    root = write_tree(tmp_path, container("#!/bin/sh\necho 'must be run as root'\nexit 3\n"))
    with pytest.raises(LabError, match="ended: exit code 3, 'must be run as root'"):
        find_meter(root)


def test_one_that_ends_in_the_middle_is_an_error_and_no_blank(tmp_path: Path) -> None:
    root = write_tree(tmp_path, container(tegrastats(ORIN_NANO, forever=False)))
    with find_meter(root) as meter, pytest.raises(LabError, match="ended: exit code 3"):
        meter.read()


def test_one_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.tegrastats, "_PATIENCE_S", 0.2)
    root = write_tree(tmp_path, container("#!/bin/sh\nexec tail -f /dev/null\n"))
    with pytest.raises(LabError, match=r"no rail for 0\.2 s"):
        find_meter(root)


def test_one_that_cannot_be_started(tmp_path: Path) -> None:
    root = write_tree(tmp_path, container("no program"))
    with pytest.raises(LabError, match="cannot be started"):
        find_meter(root)


def test_closing_ends_the_program(tmp_path: Path) -> None:
    note = tmp_path / "ended"
    program = tegrastats(ORIN_NANO).replace("#!/bin/sh\n", f"#!/bin/sh\ntrap 'echo x >{note}; exit 0' TERM\n")
    with find_meter(write_tree(tmp_path, container(program))) as meter:
        meter.read()
        assert not note.exists()
    assert note.exists()
