"""Writes `docs/files.md`, the map of the files, from the first line of every module's docstring.

python docs/file_map.py
"""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "files.md"
HEAD = """# Where things are

Imports go one way: `schemas` ← `scoring` ← `pipeline`, and `schemas` ← `training`. The dataset on
disk is all that `pipeline` and `training` share. `tests/` mirrors the tree: what
`pipeline/read/tar_rows.py` holds is tested by `tests/pipeline/read/test_tar_rows.py`, or with its
room.

Written by `python docs/file_map.py` from the first line of every module.
"""
FOLDERS = (
    *("schemas", "scoring", "pipeline", "training"),
    *("benchmarks", "experiments", "examples", "docs"),
)


def page() -> str:
    """Returns the page as Markdown: a table for each folder, a line for each module."""
    return HEAD + "\n".join(folder_map(folder) for folder in FOLDERS) + "\n"


def folder_map(folder: str) -> str:
    """Returns one folder's table."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", f"{folder}/**.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # A set: of a file that is in conflict, git has several.
    paths = {Path(line) for line in listed.stdout.split() if (ROOT / line).is_file()}
    rows = [
        f"| `{path.relative_to(folder)}` | {first_line(path)} |"
        for path in sorted(paths)
        if path.name != "__init__.py"
    ]
    return "\n".join([f"\n| `{folder}/` | |", "|---|---|", *rows]) if rows else ""


def first_line(path: Path) -> str:
    """Returns the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
