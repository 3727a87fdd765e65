"""Writes the README's file map from the first line of every module's docstring.

python docs/file_map.py
"""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN = "<!-- file map: written by docs/file_map.py -->"
END = "<!-- end of the file map -->"
FOLDERS = ("schemas", "scoring", "pipeline", "training", "benchmarks", "examples", "docs")


def file_map() -> str:
    """Returns the map as Markdown: a table for each folder, a line for each module."""
    return "\n".join(folder_map(folder) for folder in FOLDERS)


def folder_map(folder: str) -> str:
    """Returns one folder's table."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", f"{folder}/**.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [Path(line) for line in listed.stdout.split() if not line.endswith("__init__.py")]
    rows = [f"| `{path.relative_to(folder)}` | {first_line(path)} |" for path in sorted(paths)]
    return "\n".join([f"\n| `{folder}/` | |", "|---|---|", *rows]) if rows else ""


def first_line(path: Path) -> str:
    """Returns the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def with_file_map(readme: str) -> str:
    """Returns the README with its map made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{file_map()}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_file_map(README.read_text(encoding="utf-8")), encoding="utf-8")
