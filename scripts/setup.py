"""Makes `.venv` in the checkout and installs Tailorbird there; called by scripts/search and scripts/test.

    python3 scripts/setup.py STAMP KIND        (KIND: base, or dev)

Standard library only. It may be killed at any moment and started again, and two may be started at once.
STAMP is what the caller compares `.venv/.stamp-KIND` with; it is written last.
"""

import fcntl
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
CONSTRAINTS = VENV / "constraints.txt"
CREATING = VENV / ".creating"
EXTRAS = {"base": "", "dev": "[dev,mnist]"}
# In .venv rather than in a build environment of its own: with everything there, a set-up needs no network.
BUILD = ("hatchling>=1.25", "editables")
SIGN_OF_LIFE_SECONDS = 20
SHOWN = ("Collecting", "Downloading", "Using cached", "Processing", "Building", "Installing", "ERROR")


class SetupError(Exception):
    """What went wrong and what to do, in one or two lines."""


def say(text: str) -> None:
    """One line on stderr: stdout belongs to the command that is being set up."""
    print(f"tailorbird: {text}", file=sys.stderr, flush=True)


def stamp_path(kind: str) -> pathlib.Path:
    """The file that says which pyproject.toml and which checkout `.venv` is up to date with."""
    return VENV / f".stamp-{kind}"


def stamped_root() -> str | None:
    """The checkout that this `.venv` was made for, where that is known."""
    for kind in EXTRAS:
        if stamp_path(kind).exists():
            return stamp_path(kind).read_text().partition(" ")[2].strip()
    return None


def python_works() -> bool:
    """Whether `.venv` has a Python that is new enough and has pip."""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([PYTHON, "-c", check], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def empty_venv() -> None:
    """Leaves nothing but the mark that says `.venv` is not whole; the mark stands first and goes last."""
    VENV.mkdir(exist_ok=True)
    CREATING.touch()
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != CREATING:
            entry.unlink()


def make_venv(lock: int) -> None:
    """Creates `.venv`, anew where an earlier one is half-made, was moved or lost its Python."""
    moved = stamped_root() not in (None, str(ROOT))
    if python_works() and not CREATING.exists() and not moved:
        return
    say(f"making .venv with Python {sys.version.split()[0]}")
    empty_venv()
    command = [sys.executable, "-m", "venv", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock], check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        if "ensurepip" in output:
            raise SetupError(
                f"{sys.executable} has no venv module (on Debian: apt-get install python3-venv); "
                "install it, or name another Python: PYTHON=/path/to/python3"
            )
        raise SetupError(f"{' '.join(command)} failed: {(output.splitlines() or ['no output'])[-1]}")
    CREATING.unlink()


def drop_half_installed() -> None:
    """Removes what a killed pip left: it writes RECORD last, so a package without one is not whole."""
    for info in VENV.glob("lib/python3*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            say(f"repairing the half-installed {info.name.removesuffix('.dist-info')}")
            shutil.rmtree(info)


def pip_install(lock: int, *arguments: str) -> None:
    """Runs pip with its output in the log and a sign of life now and then."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    command += ["--progress-bar", "off", "--constraint", str(CONSTRAINTS), *arguments]
    began, last, over = time.monotonic(), "", threading.Event()

    def report() -> None:
        while not over.wait(SIGN_OF_LIFE_SECONDS):
            say(f"... {time.monotonic() - began:3.0f} s: {last[:80]}")

    threading.Thread(target=report, daemon=True).start()
    # pip holds the lock too: should this process be killed and pip live on, the next set-up waits for it.
    with (
        open(LOG, "a") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=[lock]
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            if line.startswith(SHOWN):
                last = line.strip()
    over.set()
    if process.returncode != 0:
        errors = [line for line in LOG.read_text().splitlines() if line.startswith("ERROR")]
        raise SetupError(
            f"installing failed: {(errors or [f'pip ended with {process.returncode}'])[-1][:300]}\n"
            "tailorbird: is this machine online? See .venv/setup.log; run the same command again to go on."
        )


def install(lock: int, kind: str) -> None:
    """Installs what is missing, by the constraints in pyproject.toml's [tool.tailorbird.setup]."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        constraints = tomllib.load(stream)["tool"]["tailorbird"]["setup"]["constraints"]
    CONSTRAINTS.write_text("".join(f"{line}\n" for line in constraints))
    say("installing what is missing (a few minutes the first time; log: .venv/setup.log)")
    LOG.write_text("")
    pip_install(lock, *BUILD)
    pip_install(lock, "--no-build-isolation", "--editable", f".{EXTRAS[kind]}")


def write_stamps(stamp: str, kind: str) -> None:
    """Marks the job as done; dev contains base."""
    for done in (kind, "base"):
        part = VENV / f".stamp-{done}.part"
        part.write_text(f"{stamp}\n")
        part.replace(stamp_path(done))


def main(stamp: str, kind: str) -> None:
    """Brings `.venv` up to date, one process at a time."""
    # The lock is on a file of the checkout: .venv may be made anew. The kernel drops it with its holders.
    with open(ROOT / "pyproject.toml", "rb") as file:
        lock = file.fileno()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp_path(kind).exists() and stamp_path(kind).read_text().strip() == stamp and python_works():
            return
        make_venv(lock)
        drop_half_installed()
        install(lock, kind)
        write_stamps(stamp, kind)
        say("set up in .venv")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except SetupError as error:
        say(str(error))
        sys.exit(1)
    except OSError as error:
        say(f"set-up failed: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("set-up interrupted; run the same command to go on")
        sys.exit(130)
