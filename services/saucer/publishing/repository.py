"""Triton's model repository on disk. Blocking: call it from a thread.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.py    serving_source/triton_model.py
    <repository>/<model>/<version>/serving/    a copy of serving_source
    <repository>/<model>/<version>/model.onnx  and model.json

A version folder is written aside and renamed into place, so one that exists is complete, unless the disk has lost
something since. It is never changed after: what does not load is removed, and written anew.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

MODEL_FILES = (
    "model.onnx",
    "model.json",
)  # all that is taken from a model's folder: nothing in it may bring code along

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CONFIG = "config.pbtxt"


def write_version(
    repository: Path, model: str, version: int, *, files: Path, serving_source: Path, config: str
) -> Path:
    """Makes a version complete on disk, and then the configuration that names it; the version's folder.

    `files` is the model's folder with MODEL_FILES; `serving_source` the package that serves it. A version that exists
    is left as it is: to write another in its place, remove it first. Raises ValueError for a bad name or version,
    FileNotFoundError if a file is missing.
    """
    target = _version_folder(repository, model, version)
    if not target.exists():
        aside = _aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in MODEL_FILES:
            shutil.copyfile(files / name, aside / name)
        shutil.copytree(serving_source, aside / "serving", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(serving_source / "triton_model.py", aside / "model.py")
        # Bytecode written into a version folder makes Triton's next load reload a version that is running. The Python
        # inside Triton heeds no PYTHONDONTWRITEBYTECODE; a file of that name leaves it no folder to write to.
        for folder in (aside, aside / "serving"):
            (folder / "__pycache__").touch()
        _sync_tree(aside)
        aside.rename(target)
        _sync(target.parent)
    write_config(repository, model, config)
    return target


def write_config(repository: Path, model: str, config: str) -> None:
    """Replaces the model's config.pbtxt, unless it is the same: Triton's next load would reload what runs by it.

    Raises ValueError for a bad name.
    """
    target = _model_folder(repository, model) / _CONFIG
    content = config.encode()
    if _read(target) == content:
        return
    aside = _aside(target)
    aside.write_bytes(content)
    _sync(aside)
    aside.rename(target)
    _sync(target.parent)


def remove_version(repository: Path, model: str, version: int) -> None:
    """Removes a version, if it exists, and with the last one the model's folder."""
    target = _version_folder(repository, model, version)
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)  # at no moment is half a version in place
        shutil.rmtree(aside)
    if target.parent.exists() and not list_versions(repository, model):
        shutil.rmtree(target.parent)


def list_versions(repository: Path, model: str) -> list[int]:
    """The model's versions on disk, ascending; none if the model is unknown."""
    folder = _model_folder(repository, model)
    return sorted(int(path.name) for path in _folders(folder) if path.name.isdecimal())


def list_models(repository: Path) -> list[str]:
    """Names of the models on disk, in order."""
    return sorted(path.name for path in _folders(repository) if _NAME.fullmatch(path.name))


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_dir()) if folder.exists() else iter(())


def _model_folder(repository: Path, model: str) -> Path:
    if not _NAME.fullmatch(model):
        raise ValueError(f"{model!r} is not a model name: letters, digits, '_', '-' and '.' only, at most 128")
    return repository / model


def _version_folder(repository: Path, model: str, version: int) -> Path:
    if version < 1:
        raise ValueError(f"a version is 1 or more, not {version}")
    return _model_folder(repository, model) / str(version)


def _aside(path: Path) -> Path:
    """Beside `path`, hence on its file system, and under a name that Triton takes for no version."""
    return path.with_name(f".{path.name}.aside")


def _read(path: Path) -> bytes | None:
    """None of a file that there is not, or that the disk does not give back: writing it anew heals it."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
