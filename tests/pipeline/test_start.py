import subprocess
import sys

import pipeline.start


def test_nothing_that_starts_threads_is_imported_before_memory_is_told() -> None:
    program = (
        f"import sys, {pipeline.start.__name__}\n"
        "assert not {'numpy', 'pyarrow', 'torch', 'apache_beam'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
