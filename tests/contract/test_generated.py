"""What is generated is what the protos say."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_generated_code_and_asyncapi_have_not_drifted(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "protos/generate.sh", str(tmp_path)], cwd=PROJECT, env=environment, check=True)
    made = {file.relative_to(tmp_path): file for file in tmp_path.rglob("*") if file.is_file()}
    assert len(made) > 50
    for name, file in made.items():
        kept = PROJECT / ("protos" if name.name == "asyncapi.yaml" else "services") / name
        assert kept.exists(), f"{name} is missing; run `make protos`"
        assert kept.read_bytes() == file.read_bytes(), f"{name} has drifted; run `make protos`"


def test_nothing_generated_is_left_over(tmp_path: Path) -> None:
    protos = {file.relative_to(PROJECT / "protos").with_suffix("") for file in (PROJECT / "protos").rglob("*.proto")}
    for file in (PROJECT / "services").rglob("*_pb2*.py*"):
        if file.suffix in {".py", ".pyi"}:
            stem = file.name.split("_pb2")[0]
            source = file.relative_to(PROJECT / "services").with_name(stem)
            assert source in protos, f"{file} has no proto"
