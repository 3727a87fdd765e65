"""The entry of `aligngpt-curate`: how memory is kept is told before a library starts threads."""

from schemas.memory import keep_freed_memory


def main() -> None:
    """Runs the command line, which ends the process."""
    keep_freed_memory()  # one worker is this process; after Arrow's import it would half fail

    from pipeline.cli import main as run_command_line

    run_command_line()
