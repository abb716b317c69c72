"""What holds a device's clocks back, and how often it has done so since the start.

Now: cooling devices (/sys/class/thermal/cooling_device*: type, cur_state) above 0. On a Jetson those are the
`*-throttle-alert` (`*-balanced` on JetPack 4) and the caps on cpufreq and devfreq (`thermal-cpufreq-0` before
Linux 5.11); a fan is one, too, and no throttling.
Counted: a Jetson's over-current and under-voltage events (oc{1,2,3}_event_cnt of the hwmon soctherm_oc;
developer guide of Jetson Linux, platform power and performance), and what x86 CPUs count in
/sys/devices/system/cpu/cpu*/thermal_throttle/.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.system_files import folders, read_int, read_text

# intel_powerclamp is -1 at rest; "TCC Offset" is a setting.
_HOLDS_BACK = re.compile(
    r"(?i).*-throttle-alert|hot-surface-alert|.*-balanced|(thermal-)?(cpu|dev)freq.*"
    r"|processor|intel_powerclamp"
)
_CAUSES = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


def active_throttling(root: Path = Path("/")) -> tuple[str, ...]:
    """In the system's words, each once."""
    found = [
        read_text(device / "type") or ""
        for device in folders(root, "sys/class/thermal/cooling_device*")
        if (read_int(device / "cur_state") or 0) > 0
    ]
    return tuple(sorted({kind for kind in found if _HOLDS_BACK.fullmatch(kind)}))


def throttle_events(root: Path = Path("/")) -> dict[str, int]:
    """Counters by name; only their growth means something, for they begin at the system's start."""
    found: dict[str, int] = {}
    for path in folders(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        channel = path.name.partition("_")[0]
        if (count := read_int(path)) is not None:
            found[f"{_CAUSES.get(channel, 'over-current')} ({path.name})"] = count
    for kind in ("core", "package"):
        counts = [
            count
            for path in folders(
                root, f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{kind}_throttle_count"
            )
            if (count := read_int(path)) is not None
        ]
        if counts:
            found[f"thermal ({kind}_throttle_count)"] = sum(counts)
    return found
