"""x86-avx2's constants: those of x86-avx512-vnni, arithmetic slower by the width of the vectors; unvalidated.

    .venv/bin/python scripts/derive_avx2.py

AVX2 registers are half as wide as AVX-512's (float arithmetic x2) and integers lack VNNI (x4: two
instructions and half the width). Run it after scripts/fit_x86.py.
"""

from __future__ import annotations

from hw_profiles.fitting import constants_yaml, replace_block
from hw_profiles.local import VECTOR_FACTORS, slower
from hw_profiles.target import TARGETS_FOLDER, forget_targets, load_target

BASE, TARGET = "x86-avx512-vnni", "x86-avx2"


def main() -> None:
    """Write the constants and what they rest on."""
    cost = slower(load_target(BASE).cost, *VECTOR_FACTORS["avx2"])
    values = {(t, n): c.value for t, entries in cost.constants.items() for n, c in entries.items()}
    float_source, int_source = (
        f"{BASE}, scripts/fit_x86.py; arithmetic x{factor:g}: half the vector width{note}"
        for factor, note in zip(VECTOR_FACTORS["avx2"][:2], ("", ", no VNNI"), strict=True)
    )
    sources = {t: int_source if "int8" in t else float_source for t in cost.constants}
    interval = cost.interval
    text = [
        "  interval:",
        f'    log_sigma: {{value: {interval.log_sigma.value:.4g}, source: "{interval.log_sigma.source}"}}',
        f"    runtime_factor: "
        f'{{value: {interval.runtime_factor.value:.3g}, source: "no rows of such a core: wide"}}',
        constants_yaml(values, sources),
    ]
    path = TARGETS_FOLDER / f"{TARGET}.yaml"
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    backing = f"constants of {BASE} scaled by vector width; measure to correct them"
    replace_block(path, "validation", f'validation: {{status: unvalidated}}\nbacking: "{backing}"')
    forget_targets()
    load_target(TARGET)


if __name__ == "__main__":
    main()
