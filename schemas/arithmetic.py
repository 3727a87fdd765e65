"""Which arithmetic a processor is fast in: bf16 with instructions of its own, or fp32.

Everything that chooses arithmetic by what a machine has asks here: training, scoring, chatting,
and the search for near-duplicates. bf16 without instructions for it is emulated, and then slower
than fp32 many times over.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FastPrecision = Literal["bf16", "fp32"]

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what a processor has."""

X86_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Products of bf16, as Linux calls them on x86: oneDNN, which multiplies for torch, uses them."""

ARM_INSTRUCTIONS = ("bf16",)
"""The same on Arm."""

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep oneDNN from instructions; the first that is set counts."""

LIMITS_BELOW_BF16 = frozenset(
    (
        "SSE41",
        "AVX",
        "AVX2",
        "AVX2_VNNI",
        "AVX2_VNNI_2",
        "AVX512_CORE",
        "AVX512_CORE_VNNI",
    )
)
"""Values under which oneDNN emulates products of bf16. ATEN_CPU_CAPABILITY does not reach oneDNN.
Source: a product of 512 x 576 x 1536 on an AMD EPYC with AVX512-BF16, torch 2.14.1: bf16 takes 0.3
to 0.5 times as long as fp32 without a limit, with AVX512_CORE_BF16, and with ATEN_CPU_CAPABILITY
avx2 or default; 2.7 times with AVX512_CORE, 4 to 6 times with AVX2 and AVX2_VNNI_2."""

SIDE = 256
"""Of the matrices that `bf16_slowdown` multiplies: under a second where bf16 is slowest."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A precision, and why it is the one."""

    precision: FastPrecision
    reason: str
    """For people, as in: the processor has bf16 instructions (avx512_bf16)."""


def fast_arithmetic(device: Literal["cpu", "cuda"]) -> Arithmetic:
    """Returns bf16 where the device has instructions for it, else fp32; and why.

    Args:
        device: of this machine; for `cuda`, torch's current GPU.
    """
    if device == "cpu":
        flags = CPU_INFO.read_text(errors="replace") if CPU_INFO.is_file() else ""
        return processor_arithmetic(flags, os.environ)
    import torch

    if not torch.cuda.is_available():
        return Arithmetic("bf16", "a GPU is asked for")  # a worker's, as none is here
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Arithmetic("bf16", f"the GPU has bf16 instructions ({name})")
    return Arithmetic("fp32", f"the GPU has no bf16 instructions and would emulate them ({name})")


def processor_arithmetic(cpu_info: str, environment: Mapping[str, str]) -> Arithmetic:
    """Returns the arithmetic that a processor is fast in, and why.

    Args:
        cpu_info: what Linux says of it; empty if nothing is known.
        environment: variables that may keep oneDNN from its instructions.
    """
    words = _flags(cpu_info)
    if not words:
        return Arithmetic("fp32", "this system does not say which instructions its processor has")
    found = [name for name in X86_INSTRUCTIONS if name in words]
    limit = next((name for name in LIMITS if environment.get(name)), None)
    if found and limit and environment[limit].upper() in LIMITS_BELOW_BF16:
        return Arithmetic(
            "fp32",
            f"{limit}={environment[limit]} keeps the processor's bf16 instructions "
            f"({', '.join(found)}) from being used",
        )
    found += [name for name in ARM_INSTRUCTIONS if name in words]
    if found:
        return Arithmetic("bf16", f"the processor has bf16 instructions ({', '.join(found)})")
    return Arithmetic("fp32", "the processor has no bf16 instructions and would emulate them")


def _flags(cpu_info: str) -> set[str]:
    """Returns the words of the lines that list instructions: x86's flags, Arm's Features."""
    lines = (line.partition(":") for line in cpu_info.splitlines())
    kept = (words for name, _, words in lines if name.strip().lower() in ("flags", "features"))
    return set(" ".join(kept).split())


def keep_products_reproducible() -> None:
    """Lets the same product end in the same bits, wherever in memory its factors lie.

    MKL, which multiplies for torch on x86, chooses by their alignment how it sums products of few
    rows, so that what a model says would differ in the last bits from one process to the next.
    In its reproducible mode it does not, and is as fast. To be called before the first product,
    after which MKL asks no more; processes started from here inherit it. Whoever sets `MKL_CBWR`
    has chosen already. Source: "Obtaining Numerically Reproducible Results" in oneMKL's guide.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def keep_kernels_apart() -> None:
    """Lets torch.compile keep its kernels by the instructions that this process may use.

    By default all processes of a user share a folder, and one that is kept from instructions
    (by `ATEN_CPU_CAPABILITY`, say) fails at kernels that another compiled with them. To be called
    before anything is compiled; whoever sets `TORCHINDUCTOR_CACHE_DIR` has chosen already.
    """
    import torch

    limits = [os.environ[name] for name in LIMITS if os.environ.get(name)]
    kind = "-".join([torch.backends.cpu.get_cpu_capability(), *limits[:1]]).lower()
    name = f"aligngpt-kernels-{os.getuid()}-{''.join(c for c in kind if c.isalnum() or c in '-_')}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    chosen = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    # Torch itself writes its folder's name there when it first looks for one: nobody chose that.
    is_torchs = chosen.parent == folder.parent and chosen.name.startswith("torchinductor_")
    is_own = folder.stat().st_uid == os.getuid()  # not prepared by somebody: it holds programs
    if is_own and (is_torchs or not chosen.name):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def emulation_warning(
    setting: str, precision: str, device: Literal["cpu", "cuda"], *, learns: bool = False
) -> str | None:
    """Returns what to tell who asked for bf16 on a processor that emulates it; None if it is not.

    The ratio in it is measured when this is called.

    Args:
        setting: name of the setting that asks for it, as `score.precision`.
        learns: whether the backward pass counts, too.
    """
    arithmetic = fast_arithmetic(device)
    if precision != "bf16" or arithmetic.precision == "bf16":
        return None
    ratio = bf16_slowdown(device, learns=learns)
    work = "a layer, forward and backward," if learns else "a matrix product"
    return (
        f"{setting} is bf16, but {arithmetic.reason}: {work} takes {ratio:.1f} times as long in "
        f"bf16 as in fp32 here. {setting} auto takes what is fast"
    )


def bf16_slowdown(device: Literal["cpu", "cuda"] = "cpu", *, learns: bool = False) -> float:
    """Returns how many times as long as in fp32 a linear layer takes in bf16, measured now.

    Args:
        learns: whether its backward pass counts, too, which is slowest where bf16 is emulated.
    """
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Linear(SIDE, SIDE, bias=False, dtype=dtype, device=device)
        rows = torch.ones(SIDE, SIDE, dtype=dtype, device=device, requires_grad=learns)
        tries = []
        for _ in range(4):  # the first builds the kernels
            started = time.perf_counter()
            loss = layer(rows).sum()
            if learns:
                loss.backward()
            loss.item()
            tries.append(time.perf_counter() - started)
        seconds[dtype] = min(tries[1:])
    return seconds[torch.bfloat16] / seconds[torch.float32]
