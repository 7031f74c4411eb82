"""Any objects, as the data labels them."""

from saucer.task.scenes import Scene

SCENE = Scene(
    name="object-detection",
    title="Object detection",
    description="Finds the objects that your images are labelled with, whatever they are.",
)
