"""Small made-up images in the layouts of ImageNet-LT and iNaturalist 2018.

Each class has a colour and a frequency of its own under noise, so that a small network
learns them in a few epochs. Sizes and shapes of images differ, as they do there.
"""

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (90, 60, 45, 30, 20, 12, 8, 5, 3)  # of training, by rank
TESTED = 12  # of each class
SHUFFLED = (4, 0, 7, 2, 8, 1, 5, 3, 6)  # label in the files of each rank


def picture(label: int, number: int, shade: int) -> Image.Image:
    """An image of a class."""
    generator = np.random.RandomState(1000 * label + number)
    height, width = 40 + generator.randint(0, 20), 40 + generator.randint(0, 30)
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin((label + 1) * (rows + generator.randint(0, 9)) / 12)
    colour = np.array([(label * 53) % 255, (label * 97) % 255, shade])
    noise = generator.normal(0, 30, (height, width, 3))
    pixels = colour * 0.5 + 60 * wave[..., None] + 50 * (columns % 2)[..., None] + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write(root: Path, name: str, parts: dict[str, list[tuple[str, int]]]) -> None:
    for part, lines in parts.items():
        text = "".join(f"{path} {label}\n" for path, label in lines)
        (root / f"{name}_{part}.txt").write_text(text)
        for number, (path, label) in enumerate(lines):
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shade = 40 if part == "train" else 60
            picture(label, number + shade * 100, shade).save(place, quality=95)


def imagenet(root: Path, name: str = "toy", counts=COUNTS, tested: int = TESTED) -> str:
    """``train/n…/n…_1.JPEG label`` and ``val/ILSVRC2012_val_….JPEG label``."""
    train, test = [], []
    for rank, count in enumerate(counts):
        label = SHUFFLED[rank]
        synset = f"n{10_000 + label:08d}"
        train += [(f"train/{synset}/{synset}_{i}.JPEG", label) for i in range(count)]
        first = len(test)
        test += [
            (f"val/ILSVRC2012_val_{first + i + 1:08d}.JPEG", label)
            for i in range(tested)
        ]
    _write(root, name, {"train": train, "test": test})
    return f"lists:{name}"


def inaturalist(
    root: Path, name: str = "toy", counts=COUNTS, tested: int = TESTED
) -> str:
    """``train_val2018/Kingdom/number/hash.jpg label`` for both lists."""
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for rank, count in enumerate(counts):
        label = SHUFFLED[rank]
        kingdom = ("Plantae", "Aves", "Insecta")[label % 3]
        for part, wanted in (("train", count), ("test", tested)):
            parts[part] += [
                (f"train_val2018/{kingdom}/{label}/{part[0]}{i:031x}.jpg", label)
                for i in range(wanted)
            ]
    _write(root, name, parts)
    return f"lists:{name}"
