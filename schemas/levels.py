"""How many alignment levels there can be: `alignment_level` is an int8 column, 1 to N."""

from schemas.errors import ConfigError

LEAST_LEVELS, MOST_LEVELS = 2, 127


def check_num_levels(setting: str, num_levels: int) -> None:
    """Raises `ConfigError` unless so many levels can be told apart and stored.

    Args:
        setting: name of what the number was set by.
    """
    if not LEAST_LEVELS <= num_levels <= MOST_LEVELS:
        raise ConfigError(
            f"{setting} must be in {LEAST_LEVELS}..{MOST_LEVELS} (alignment_level is int8), "
            f"got {num_levels}"
        )
