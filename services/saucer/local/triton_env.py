"""Triton's own virtual environment: the server, its Python backend, and what served models import.

Its own, because this Triton needs numpy 1, and because models run in it: nothing of Saucer can be imported there.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LAYOUT = 1  # raise it when this file lays something out differently: existing environments are then made again
PIP_S = 900.0  # a slower download fails
STUB_S = 30.0

_STAMP = "saucer-stamp"


class TritonEnvironmentError(Exception):
    """The environment could not be made; the message says why."""


@dataclass(frozen=True)
class TritonEnvironment:
    """Where things lie in the environment at `folder`. It may not exist yet: ensure_triton_environment makes it."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        return self.programs / "python3"

    @property
    def server(self) -> Path:
        return self._pytriton / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """What Triton calls its backend directory."""
        return self.folder / "backends"

    @property
    def stub(self) -> Path:
        """The program in which the Python backend runs each instance of a model."""
        return self.backends / "python" / "triton_python_backend_stub"

    def variables(self) -> dict[str, str]:
        """The environment variables that the server needs, over those of this process."""
        # The server's libraries, then this Python's: the stub embeds it.
        libraries = [str(self._packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
        return os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # The backend asks the python3 on the PATH for its packages.
            "PATH": os.pathsep.join([str(self.programs), os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": str(self.folder),
            # For what models start. The Python in Triton's backend does not heed it: see publishing/repository.py.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def _packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(self.folder)}))

    @property
    def _pytriton(self) -> Path:
        return self._packages / "pytriton" / "tritonserver"

    def lay_out_backend(self) -> None:
        """Puts the Python backend and the stub for this Python's version where Triton looks for them."""
        target = self.backends / "python"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self._pytriton / "backends" / "python", target, ignore=shutil.ignore_patterns("__pycache__"))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(self._pytriton / "python_backend_stubs" / version / self.stub.name, self.stub)
        self.stub.chmod(0o755)  # wheels carry no x bit for it


def ensure_triton_environment(folder: Path, constraints: Path, say: Callable[[str], None] = print) -> TritonEnvironment:
    """Makes the environment at `folder` with the packages that `constraints` pins, unless it is there already.

    Blocks, a minute or so with a download. Tells `say` what it does, one sentence each; says nothing if there is
    nothing to do. Safe to call from several processes at once. Raises TritonEnvironmentError.
    """
    folder = folder.resolve()
    environment = TritonEnvironment(folder)
    wanted = f"{LAYOUT} {sys.version} {hashlib.sha256(constraints.read_bytes()).hexdigest()}\n"
    stamp = folder / _STAMP
    if _read(stamp) == wanted:
        return environment
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):
        if _read(stamp) == wanted:  # somebody else was faster
            return environment
        say(f"Making Triton's Python environment in {folder.name}.")
        venv.create(folder, clear=True, symlinks=True, with_pip=False)
        say("Installing Triton and what served models need (about 180 MB to download the first time).")
        _install(environment, constraints)
        environment.lay_out_backend()
        _check_stub(environment)
        stamp.write_text(wanted)
        say("Triton is installed.")
    return environment


def _install(environment: TritonEnvironment, constraints: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-deps", "--requirement", str(constraints)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S, check=False)
    except subprocess.TimeoutExpired:
        raise TritonEnvironmentError(f"pip took more than {PIP_S:.0f} s to install {constraints.name}") from None
    if result.returncode != 0:
        raise TritonEnvironmentError(f"pip could not install {constraints.name}:\n{result.stderr or result.stdout}")


def _check_stub(environment: TritonEnvironment) -> None:
    """Finds a missing library now, with a sentence; later Triton would only say that a model did not load."""
    command = [str(environment.stub)]
    variables = environment.variables()
    result = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=STUB_S, check=False)
    if "Expected" not in result.stdout + result.stderr:  # "Expected 9 arguments, found 1": it starts
        raise TritonEnvironmentError(
            f"Triton's Python backend does not start: {result.stderr.strip()}. It needs Python's shared library "
            "(a Python built with --enable-shared, or the system's libpython package) and a glibc of 2022 or later."
        )


def _read(path: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
