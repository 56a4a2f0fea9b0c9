"""APQ's published table of the BitFusion simulator by layer shape and bits; not monotone in the bits."""

from __future__ import annotations

from functools import lru_cache

from hw_profiles.published import read_csv

TABLE = "apq_bitfusion.csv.gz"
#: (cin, cout, input size, kernel, stride, whether depthwise) of a layer.
LayerShape = tuple[int, int, int, int, int, bool]


@lru_cache(maxsize=1)
def apq_table() -> dict[LayerShape, dict[tuple[int, int], tuple[float, float]]]:
    """Layer shape to (weight bits, activation bits) to (cycles of 2 ns, millijoules)."""
    found: dict[LayerShape, dict[tuple[int, int], tuple[float, float]]] = {}
    for r in read_csv(TABLE):
        cin, cout, size, kernel, stride = (int(r[n]) for n in ("cin", "cout", "in_h", "kernel_h", "stride_h"))
        shape = (cin, cout, size, kernel, stride, r["depthwise"] == "1")
        bits = (int(r["weight_bits"]), int(r["act_bits"]))
        found.setdefault(shape, {})[bits] = (float(r["cycles"]), float(r["mj"]))
    return found
