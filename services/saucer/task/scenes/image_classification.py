"""What an image shows as a whole: one class for each image."""

from saucer.task.scenes import Scene

SCENE = Scene(
    name="image-classification",
    title="Image classification",
    description="Says which of your classes an image shows, where labels are of whole images: a folder for each class.",
    # Without boxes the data says nothing of the size of what is on it; near what the ImageNet weights were made with.
    input_size=192,
    classification=True,
)
