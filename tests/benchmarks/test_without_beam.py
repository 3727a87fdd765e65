import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = "import sys; sys.modules['apache_beam'] = None; import benchmarks.{module}"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["duplicates", "score"])
def test_what_runs_on_a_machine_with_a_gpu_needs_no_beam(module):
    words = [sys.executable, "-c", IMPORT.format(module=module)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
