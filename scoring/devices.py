"""Where a model runs: each process takes a GPU of its own where there are several."""

import fcntl
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from schemas.arithmetic import Arithmetic, fast_arithmetic
from schemas.errors import ConfigError
from scoring.config import ScoreConfig

if TYPE_CHECKING:
    import torch

# torch takes seconds to start, and a job asks here for what its CPU does without it: what needs
# torch imports it.

_claims: dict[int, IO[bytes]] = {}


Device = Literal["auto", "cpu", "cuda"]


def require_device(wanted: Device, setting: str = "score.device") -> None:
    """Raises `ConfigError`, which names the setting, if a GPU is wanted and there is none."""
    if wanted == "cuda" and _gpu_count() == 0:
        raise ConfigError(
            f"{setting} is cuda, but this machine has no GPU that torch can use: "
            "set it to auto or cpu"
        )


def claim_device(wanted: Device, setting: str = "score.device") -> "torch.device":
    """Returns the CPU, or a GPU that no other process of this program has taken, if one is left.

    Raises:
        ConfigError: if a GPU is wanted and there is none.
    """
    import torch

    require_device(wanted, setting)
    count = _gpu_count() if wanted != "cpu" else 0
    if count == 0:
        return torch.device("cpu")
    free = next((index for index in range(count) if _claim(index)), os.getpid() % count)
    return torch.device("cuda", free)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def machine_lock(kind: str, of: str = "") -> IO[bytes]:
    """Returns an empty file that this user's processes on this machine lock for something.

    Others may write to its folder too: no link there is followed, and nothing there is emptied.

    Args:
        kind: what it is for.
        of: which of them.

    Raises:
        ConfigError: if something else stands in its place.
    """
    name = "-".join(filter(None, ("aligngpt", kind, str(os.getuid()), of)))
    path = Path(tempfile.gettempdir()) / f"{name}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o600), "r+b")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be opened to be locked ({error.strerror}): remove what stands there"
        ) from error


def _claim(index: int) -> bool:
    """Returns whether the GPU is this process's; the claim ends with the process."""
    import torch

    if index in _claims:
        return True
    uuid = torch.cuda.get_device_properties(index).uuid
    file = machine_lock("gpu", str(uuid))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _claims[index] = file
    return True


def precision_here(config: ScoreConfig) -> Arithmetic:
    """Returns what precision `auto` is for this configuration on this machine, and why."""
    return fast_arithmetic(kind_of_device(config))


def kind_of_device(config: ScoreConfig) -> Literal["cpu", "cuda"]:
    """Returns where the model of this configuration runs on this machine."""
    if config.device == "auto":
        return "cuda" if _gpu_count() > 0 else "cpu"
    return config.device


def with_precision(config: ScoreConfig) -> ScoreConfig:
    """Returns the configuration with `auto` replaced by what it is on this machine."""
    if config.precision != "auto":
        return config
    return replace(config, precision=precision_here(config).precision)


def quick_to_check(config: ScoreConfig) -> ScoreConfig:
    """Returns the configuration to try a model with on this CPU, which may not be its device.

    What a GPU does at once, this processor may emulate, for minutes a picture.
    """
    if kind_of_device(config) == "cpu" or config.precision == fast_arithmetic("cpu").precision:
        return config
    return replace(config, precision="fp32")


def describe_device(device: "torch.device") -> str:
    """Returns what kind of processor a device is, for the record."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def use_exact_arithmetic() -> None:
    """Makes fp32 mean fp32 on a GPU, and its kernels the same on every run."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
