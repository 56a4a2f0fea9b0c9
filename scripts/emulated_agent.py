"""Serve the agent on an emulated Arm core, so that a board's whole flow can be tried without a board.

    python scripts/emulated_agent.py [--core cortex-a72] [--port 8765]

Prints the command that searches on it. Milliseconds measured there are those of the emulation, and are
called so; see hw_profiles/devices/emulated_agent.py. Set-up, once: scripts/arm_sysroot.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from hw_profiles.devices.emulated_agent import EmulatedAgent  # noqa: E402
from hw_profiles.errors import DeviceError  # noqa: E402


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--core", default="cortex-a72")
    parser.add_argument("--port", type=int, default=8765)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the agent ends with us
    try:
        with EmulatedAgent(given.core, port=given.port) as agent:
            print(f"search --target raspberry-pi --host {agent.address} --token {agent.token}", flush=True)
            return agent.wait()
    except DeviceError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
