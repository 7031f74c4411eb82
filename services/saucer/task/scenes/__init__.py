"""Scenes: presets over the same engine. A new scene is one new file in this folder that defines SCENE."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scene:
    """What a scene presets; a form overrides it."""

    name: str
    title: str
    description: str
    # Those that the data must have; empty: whatever the data has.
    classes: tuple[str, ...] = ()
    # Names that labels of a class commonly have, by class; case does not matter.
    common_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Validation map_50 at which training stops by itself; None: it does not, unless the form says so.
    expected_accuracy: float | None = None
    # Side of the square input, in pixels; None: derived from the data.
    input_size: int | None = None
    starting_point: str = "imagenet-lite0"
    # Labels say what a whole image shows, and the accuracy is top-1.
    classification: bool = False

    def class_of(self, label: str) -> str:
        """The scene's class that a label of the data stands for; the label itself if there is none."""
        said = label.strip().casefold()
        for name in self.classes:
            if said in (name, *self.common_names.get(name, ())):
                return name
        return label


def load() -> Mapping[str, Scene]:
    """Every scene by its name, in the order of the names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    scenes = [importlib.import_module(f"{__name__}.{module}").SCENE for module in modules]
    return {scene.name: scene for scene in scenes}
