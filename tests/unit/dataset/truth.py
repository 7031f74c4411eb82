"""One small set of labels, written in each format, and read again."""

from pathlib import Path
from xml.sax.saxutils import escape

from tests.unit.dataset.folders import HEIGHT, WIDTH, Imported, coco, image, picture, write

Box = tuple[str, float, float, float, float]

# Of each image: its split, and class, x, y, width, height of its boxes. Nothing is on the second, and labels say so.
TRUTH: dict[str, tuple[str, list[Box]]] = {
    "1": ("train", [("cup", 4, 4, 10, 10), ("plate", 0, 0, WIDTH, HEIGHT)]),
    "2": ("train", []),
    "3": ("validation", [("plate", 20, 7, 31, 40)]),
    "4": ("test", [("cup", 1, 2, 3, 4), ("cup", 50, 40, 14, 8)]),
}
CLASSES = ("cup", "plate")
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def as_coco(folder: Path) -> Path:
    number = 0
    annotations = []
    for name, (_, boxes) in TRUTH.items():
        for class_name, *xywh in boxes:
            number += 1
            category = 1 + CLASSES.index(class_name)
            annotations.append({"id": number, "image_id": int(name), "category_id": category, "bbox": xywh})
    images = [
        image(int(name), split=split, **({} if boxes else {"empty": True})) for name, (split, boxes) in TRUTH.items()
    ]
    return write(folder, {"annotations.json": coco(images, annotations), **pictures("images/{name}.png")})


def pictures(path: str) -> dict[str, bytes]:
    return {path.format(name=name, split=FOLDERS[split]): picture(int(name)) for name, (split, _) in TRUTH.items()}


def voc_file(boxes: list[Box], size: tuple[int, int] = (WIDTH, HEIGHT), more: str = "") -> bytes:
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox>"
        f"<part><name>rim</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for name, x, y, width, height in boxes
    )
    return (
        f"<annotation><filename>old name.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}{more}</annotation>"
    ).encode()


def as_voc(folder: Path) -> Path:
    files = {f"VOC/Annotations/{name}.xml": voc_file(boxes) for name, (_, boxes) in TRUTH.items()}
    for split, listed in FOLDERS.items():
        lines = "".join(f"{name}\n" for name, (own, _) in TRUTH.items() if own == split)
        files[f"VOC/ImageSets/Main/{listed}.txt"] = lines.encode()
    files["VOC/ImageSets/Main/cup_train.txt"] = b"1  1\n4 -1\n"
    return write(folder, files | pictures("VOC/JPEGImages/{name}.png"))


def as_voc_in_split_folders(folder: Path) -> Path:
    files = {f"{FOLDERS[split]}/{name}.xml": voc_file(boxes, (0, 0)) for name, (split, boxes) in TRUTH.items()}
    return write(folder, files | pictures("{split}/{name}.png"))


def yolo_lines(boxes: list[Box]) -> bytes:
    return "".join(
        f"{CLASSES.index(name)} {(x + width / 2) / WIDTH} {(y + height / 2) / HEIGHT} {width / WIDTH} "
        f"{height / HEIGHT}\n"
        for name, x, y, width, height in boxes
    ).encode()


def labels(path: str) -> dict[str, bytes]:
    return {path.format(name=name, split=FOLDERS[split]): yolo_lines(boxes) for name, (split, boxes) in TRUTH.items()}


def as_yolo(folder: Path) -> Path:
    settings = (
        b"path: ../datasets/mine\ntrain: images/train\nval: images/val\ntest: images/test\n"
        b"names:\n  0: cup\n  1: plate\n"
    )
    files = labels("labels/{split}/{name}.txt") | pictures("images/{split}/{name}.png")
    return write(folder, files | {"data.yaml": settings})


def as_yolo_of_roboflow(folder: Path) -> Path:
    settings = b"train: ../train/images\nval: ../val/images\ntest: ../test/images\nnc: 2\nnames: ['cup', 'plate']\n"
    files = labels("{split}/labels/{name}.txt") | pictures("{split}/images/{name}.png")
    return write(folder, files | {"data.yaml": settings, "README.txt": b"exported"})


def as_yolo_of_darknet(folder: Path) -> Path:
    files = labels("obj_train_data/{name}.txt") | pictures("obj_train_data/{name}.png") | {"obj.names": b"cup\nplate\n"}
    for split, listed in FOLDERS.items():
        lines = "".join(f"data/obj_train_data/{name}.png\n" for name, (own, _) in TRUTH.items() if own == split)
        files[f"{listed}.txt"] = lines.encode()
    return write(folder, files)


def found_boxes(done: Imported) -> dict[str, tuple[str, list[Box]]]:
    names = {category["id"]: category["name"] for category in done.manifest["categories"]}
    found: dict[str, tuple[str, list[Box]]] = {}
    for entry in done.manifest["images"]:
        boxes = [
            (names[annotation["category_id"]], *annotation["bbox"])
            for annotation in done.manifest["annotations"]
            if annotation["image_id"] == entry["id"]
        ]
        found[Path(entry["source_name"]).stem] = entry["split"], boxes
    return dict(sorted(found.items()))
