"""How good the predictor is: on published measurements of devices that are not here, and on this machine.

    .venv/bin/python scripts/bench_predictor.py --published   # boards, phones, GPU, FPGA: published rows only
    .venv/bin/python scripts/bench_predictor.py --local       # profile this machine, then networks end to end

Both print tables beside their baselines; --published needs no device and a few minutes.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module


def main() -> None:
    """Hand over to the part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--published", action="store_true", help="published measurements of devices")
    what.add_argument("--local", action="store_true", help="networks measured on this machine")
    parser.add_argument("--only", default="", help="with --published: boards, devices or tables alone")
    args, rest = parser.parse_known_args()
    if args.published:
        if rest:
            parser.error(f"unknown with --published: {' '.join(rest)}")
        from bench_predictor_published import main_published

        main_published(args)
        return
    local = import_module("bench_predictor_local")
    own = argparse.ArgumentParser(prog="bench_predictor.py --local")
    local.add_arguments(own)
    sys.exit(local.main_local(own.parse_args(rest)))


if __name__ == "__main__":
    main()
