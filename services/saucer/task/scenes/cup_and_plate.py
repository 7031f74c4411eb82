"""A camera over a table finds cups and plates."""

from saucer.task.scenes import Scene

SCENE = Scene(
    name="cup-and-plate",
    title="Cup-and-plate detection",
    description="Finds cups and plates on a table. The data needs the classes cup and plate.",
    classes=("cup", "plate"),
    common_names={
        "cup": ("cups", "mug", "mugs", "teacup", "tea cup", "coffee cup", "coffee mug", "espresso cup"),
        "plate": ("plates", "dish", "dishes", "saucer", "dinner plate", "side plate"),
    },
    # A margin above the 0.80 on the test split that it aims at: validation is what training sees.
    expected_accuracy=0.88,
    input_size=192,
)
