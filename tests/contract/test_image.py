"""What an image has: the installed package, its extras less those of workers, and nothing of the source tree."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from saucer.local.stack import SERVICES

PROJECT = Path(__file__).parents[2]
# Of the extra `worker`: an image of a service has none of them.
ABSENT = ("onnxruntime", "onnx", "torch", "mmengine", "mmcv", "mmdet", "scipy", "shapely", "pycocotools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the wheel that `pip install .` makes."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (source / name).write_bytes((PROJECT / name).read_bytes())
    (source / "services").symlink_to(PROJECT / "services")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(source / "made"), str(source)], check=True)
    (file,) = (source / "made").glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_package_has_every_migration(wheel: set[str]) -> None:
    schemas = {str(file.relative_to(PROJECT / "services")) for file in (PROJECT / "services").rglob("schema/*.sql")}
    assert len(schemas) > 10
    assert schemas <= wheel


@pytest.mark.parametrize("name", [*SERVICES, "gateway"])
def test_a_service_starts_without_what_workers_alone_have(name: str) -> None:
    code = f"import sys\nfor absent in {ABSENT!r}: sys.modules[absent] = None\nimport saucer.{name}.main\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
