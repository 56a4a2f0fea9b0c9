"""Trains digits32's ResNet-20 and writes search/tasks/digits32.safetensors.

    .venv/bin/python scripts/train_digits32.py [--out FILE]

About a minute and a half on two cores. The last line printed is the value of WEIGHTS_SHA256 in
search/tasks/digits.py. Last bits depend on torch's version, the processor and the number of threads, so
another machine's file is another.
"""

import argparse
import time
from pathlib import Path

from search.task import Split, run_network
from search.tasks.augment import distorted_batches
from search.tasks.digits import DISTORTION, RECIPE, WEIGHTS, digits_images, normalise, split_of
from search.tasks.metrics import top1
from search.tasks.networks import resnet20
from search.tasks.training import save_weights, sha256_of, train


def main() -> None:
    """Trains, prints the accuracies, and writes the file."""
    parser = argparse.ArgumentParser(description="trains digits32's ResNet-20")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    out: Path = parser.parse_args().out
    images, labels = digits_images()
    parts = dict(zip(("train", "validation", "test"), split_of(labels), strict=True))
    chosen = parts["train"]
    began = time.perf_counter()
    batches = distorted_batches(images[chosen], labels[chosen], DISTORTION, normalise)
    network = train(resnet20, batches, len(chosen), RECIPE)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    for name, index in parts.items():
        part = Split((normalise(images[index]),), labels[index])
        score = top1(run_network(network, part.inputs), part.targets).mean()
        print(f"{name:10} {len(part):5} samples  top-1 {100 * score:.2f} %")
    save_weights(network, out)
    print(f"{out.name} {out.stat().st_size} bytes, sha256")
    print(sha256_of(out))


if __name__ == "__main__":
    main()
