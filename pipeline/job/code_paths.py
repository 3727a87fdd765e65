"""Keeps where this machine's Python files lie out of the functions that Beam pickles.

A function that no name leads to, such as a lambda (Beam's own steps are full of them), is pickled
with its code, and the code names its file. Left as it is, each job would tell its runner the folder
of somebody's home, and two machines would submit different graphs.
"""

import os
import sys

from apache_beam.internal import cloudpickle_pickler


def forget_code_paths() -> None:
    """Makes Beam pickle code as of files below Python's path, from now on."""
    cloudpickle_pickler.DEFAULT_CONFIG.filepath_interceptor = path_in_packages


def path_in_packages(path: str) -> str:
    """Returns where a file lies in its package, such as apache_beam/pvalue.py."""
    roots = (os.path.join(entry or os.getcwd(), "") for entry in sys.path)  # noqa: PTH109, PTH118
    within = [path.removeprefix(root) for root in roots if path.startswith(root)]
    return min(within, key=len, default=path.rsplit("/", 1)[-1])
