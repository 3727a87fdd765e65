"""img2dataset's downloads as its command makes them, in a process of their own.

For each download it would spawn two more, which import all of it anew. Here they are forked, and
torch is left out, which it imports for loaders that nobody uses here.

python -m tests.peer_downloads JSON
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def download_all(asked: Sequence[dict[str, Any]]) -> None:
    """Lets img2dataset download what each of its calls is given."""
    command = [sys.executable, "-m", "tests.peer_downloads", json.dumps(asked)]
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def main() -> None:
    """Makes the calls that are named."""
    blocked: dict[str, Any] = sys.modules
    blocked["torch"] = None
    from img2dataset import distributor, download, logger

    fork: Any = multiprocessing.get_context("fork")
    distributor.get_context = lambda method: fork
    logger.LoggerProcess._Popen = staticmethod(fork.Process._Popen)
    for settings in json.loads(sys.argv[1]):
        download(**settings)


if __name__ == "__main__":
    main()
