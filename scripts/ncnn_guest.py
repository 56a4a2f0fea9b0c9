"""Runs ncnn layers inside the emulator and counts their instructions; see scripts/bench_instructions.py.

    ncnn_guest.py COUNTS JOBS RESULTS     COUNTS: the counter's file; JOBS: JSON; RESULTS: one JSON a line

A job is {"key", "param", "shape", "integer"}: a network's text, its input's shape and whether that is int8.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

_COUNT = struct.Struct("<Q")  # class "all" is the first


def counted(job: dict[str, Any], counts: int) -> int:
    """Instructions of the second of two runs, on one thread, in fp32 or int8 alone."""
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    path = Path(f"{job['key']}.param")
    path.write_text(job["param"], encoding="ascii")
    if net.load_param(str(path)):
        raise ValueError(f"ncnn does not read {job['param']!r}")
    net.load_model(ncnn.DataReaderFromEmpty())
    values = np.random.default_rng(0).standard_normal(job["shape"])
    values = (40 * values).clip(-127, 127).astype(np.int8) if job["integer"] else values.astype(np.float32)
    image, found = ncnn.Mat(values), 0
    for _ in range(2):
        extractor = net.create_extractor()
        extractor.input("data", image)
        (before,) = _COUNT.unpack(os.pread(counts, _COUNT.size, 0))
        code, _ = extractor.extract("out", 1)  # 1: as it is, without conversion to float
        (after,) = _COUNT.unpack(os.pread(counts, _COUNT.size, 0))
        if code:
            raise ValueError(f"ncnn does not run {job['param']!r}")
        found = after - before
    return found


def main() -> None:
    """Count all jobs."""
    counts, jobs, results = sys.argv[1:]
    file = os.open(counts, os.O_RDONLY)
    with open(results, "w", encoding="utf-8") as sink:
        for job in json.loads(Path(jobs).read_text(encoding="utf-8")):
            print(json.dumps({"key": job["key"], "instructions": counted(job, file)}), file=sink, flush=True)


if __name__ == "__main__":
    main()
