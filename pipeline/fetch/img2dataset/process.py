"""The process in which img2dataset downloads: it redirects its process's output around each image.

Started as `python -P -m pipeline.fetch.img2dataset.process FOLDER`. It reads `job.json` and
`urls.arrow` from the folder and leaves img2dataset's `00000.tar` and `00000.parquet` there. It ends
with the process that started it: when its standard input does.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from schemas.memory import large_imports


def download(folder: Path, job: dict[str, Any]) -> None:
    """Runs img2dataset's downloader over the URLs of a folder."""
    # webdataset, which it writes with, would import torch for loaders that nobody uses here: more
    # than half of the start. Without torch it does without them.
    blocked: dict[str, Any] = sys.modules
    blocked["torch"] = None
    with large_imports():
        from img2dataset.downloader import Downloader
        from img2dataset.resizer import Resizer
        from img2dataset.writer import WebDatasetSampleWriter

    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(**job["resizer"]),
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        oom_shard_count=5,
        verify_hash_type=None,
        **job["downloader"],
    )
    downloader.download_shard((0, str(folder / "urls.arrow")))


def main() -> None:
    """Does the job of the folder that is named."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    download(folder, json.loads((folder / "job.json").read_text()))


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when nobody is left at the other end
    os._exit(1)


if __name__ == "__main__":
    main()
