"""How much memory a process has had at most."""

import re
from pathlib import Path

MIB = 1024 * 1024


def forget_peak(pid: int) -> int:
    """From now on the peak is what it has now, in bytes, or what it comes to have."""
    # https://docs.kernel.org/filesystems/proc.html: 5 resets the peak to the present.
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


def peak_bytes(pid: int) -> int:
    """Since it was last forgotten."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, "the process lives"
    return 1024 * int(found[1])
