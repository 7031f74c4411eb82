"""Fails unless this Python's shared library can be loaded: from its own folder, or from where the system looks."""

import ctypes
import sys
import sysconfig
from pathlib import Path

name = f"libpython3.{sys.version_info.minor}.so.1.0"
for path in (Path(sysconfig.get_config_var("LIBDIR")) / name, name):
    try:
        ctypes.CDLL(str(path))
    except OSError:
        continue
    sys.exit(0)
sys.exit(1)
