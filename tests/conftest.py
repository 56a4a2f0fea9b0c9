"""What all tests share: one thread each, caches and data apart from the user's own, repeatable examples."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_VENV = Path(__file__).parent.parent / ".venv"
_CACHE = _VENV / "cache" if _VENV.is_dir() else Path(tempfile.gettempdir()) / "tailorbird-tests"

# Before torch and hypothesis are imported, and for the processes that tests start.
os.environ["XDG_CACHE_HOME"] = str(_CACHE / "tests")
os.environ["XDG_DATA_HOME"] = str(_CACHE / "tests-data")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(_CACHE / "hypothesis")
# A pool of their own that begins empty: what an earlier version of the code found out must not pass a test.
_POOL = tempfile.mkdtemp(prefix="tailorbird-pool-")
atexit.register(shutil.rmtree, _POOL, ignore_errors=True)
os.environ["TAILORBIRD_POOL"] = str(Path(_POOL) / "pool.sqlite")
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from hypothesis import settings  # noqa: E402

settings.register_profile("tailorbird", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tailorbird")
