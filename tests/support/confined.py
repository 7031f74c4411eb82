"""What tests of lib/confined.py run in a child process: it does what its job says, and tells of it."""

import errno
import os
import sys
import time
from pathlib import Path

from saucer.lib import confinement


def main() -> None:
    limits, job = confinement.begin()
    confinement.say({"pid": os.getpid(), "environment": sorted(os.environ)})
    if seconds := job.get("sleep_s"):
        time.sleep(seconds)
    if size := job.get("allocate_bytes"):
        try:
            bytearray(size)
        except MemoryError:
            confinement.say({"refused_memory_above": limits.memory_bytes})
    if size := job.get("write_bytes"):
        try:
            Path(job["file"]).write_bytes(bytes(size))
        except OSError as error:
            confinement.say({"refused_file": error.errno == errno.EFBIG})
    if job.get("fail"):
        sys.exit("it could not")


if __name__ == "__main__":
    main()
