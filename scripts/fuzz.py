"""Fuzzes every parser of input from outside, guided by coverage: scripts/fuzz.py [--minutes 10] [NAME ...]

Needs `pip install 'tailorbird[fuzz]'` (atheris; Linux). A finding is an error that is none of ours,
a message that says nothing, or an input that takes more than `--slow` seconds or `--memory` MB; the input is
kept in the corpus folder and the exit code is 1. Inputs that reach new code are kept there too, so that a
later call goes on where this one ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

#: Packages whose bytecode is instrumented: what parses here. torch and numpy are not: they take an hour.
INSTRUMENTED = ("search", "agents", "compressors", "hw_profiles", "yaml", "json", "zipfile", "gzip", "pickle")


def one(name: str, arguments: Sequence[str]) -> None:
    """Fuzz one parser in this process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from search.parsers_testing import PARSERS, refused

        parser = PARSERS[name]
        with tempfile.TemporaryDirectory() as made:  # what is imported on first use is instrumented too
            refused(parser, parser.example(), Path(made))
    folder = Path(tempfile.mkdtemp(prefix="tailorbird-fuzz-"))

    def test(content: bytes) -> None:
        refused(parser, content, folder)

    atheris.Setup([sys.argv[0], *arguments], test)
    atheris.Fuzz()


def run(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one parser in a process of its own; whether it held."""
    from search.parsers_testing import PARSERS

    corpus = Path(options.corpus, name)
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "example").write_bytes(PARSERS[name].example())
    limits = [
        f"-max_total_time={round(60 * options.minutes)}", f"-timeout={options.slow}",
        f"-rss_limit_mb={options.memory}", f"-artifact_prefix={corpus}-", "-print_final_stats=1",
        "-verbosity=0", "-max_len=20000",
    ]  # fmt: skip
    start = time.monotonic()
    command = [sys.executable, __file__, "--only", name, *limits, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = done.stderr.splitlines()
    runs = next((x.split()[-1] for x in lines if "number_of_executed_units" in x), "?")
    kept = len(list(corpus.iterdir()))
    held = done.returncode == 0
    verdict = "held" if held else f"FINDING (exit {done.returncode})"
    print(
        f"{name:<14} {runs:>9} inputs  {kept:>5} kept  {time.monotonic() - start:6.0f} s  {verdict}",
        flush=True,
    )
    if not held:
        print("\n".join(x[:300] for x in lines[-options.lines :]), flush=True)
    return held


def main() -> int:
    """All parsers, or those named, one after the other."""
    if sys.argv[1:2] == ["--only"]:
        one(sys.argv[2], sys.argv[3:])
        return 0
    from search.parsers_testing import PARSERS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARSERS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each parser")
    parser.add_argument("--slow", type=int, default=20, help="seconds that one input may take")
    parser.add_argument("--memory", type=int, default=4096, help="MB that the process may take")
    parser.add_argument("--corpus", default=".venv/cache/fuzz", help="folder of inputs")
    parser.add_argument("--lines", type=int, default=30, help="of a finding's output")
    options = parser.parse_args()
    unknown = [n for n in options.names if n not in PARSERS]
    if unknown:
        parser.error(f"no parser {unknown[0]!r}; there are {', '.join(PARSERS)}")
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is missing: pip install 'tailorbird[fuzz]'", file=sys.stderr)
        return 2
    held = [run(name, options) for name in options.names or PARSERS]
    print(f"{sum(held)} of {len(held)} parsers held")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
