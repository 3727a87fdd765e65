"""Which arithmetic a processor is fast in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from schemas.arithmetic import (
    CPU_INFO,
    LIMITS,
    bf16_slowdown,
    emulation_warning,
    fast_arithmetic,
    keep_kernels_apart,
    keep_products_reproducible,
    processor_arithmetic,
)

ZEN_4 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nflags : fpu\n"
SAPPHIRE_RAPIDS = "flags : avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8\n"
ZEN_3 = "model name : bf16 avx512_bf16\nflags : fpu avx2 fma f16c\nbugs : avx512_bf16\n"
GRAVITON_3 = "processor : 0\nFeatures : fp asimd sve i8mm bf16 dgh\nCPU part : 0xd40\n"
GRAVITON_2 = "Features : fp asimd evtstrm aes crc32 dit\n"


@pytest.mark.parametrize(
    ("cpu_info", "precision", "reason"),
    [
        (ZEN_4, "bf16", "has bf16 instructions (avx512_bf16)"),
        (SAPPHIRE_RAPIDS, "bf16", "has bf16 instructions (amx_bf16, avx512_bf16)"),
        (ZEN_3, "fp32", "has no bf16 instructions"),
        (GRAVITON_3, "bf16", "has bf16 instructions (bf16)"),
        (GRAVITON_2, "fp32", "has no bf16 instructions"),
        ("", "fp32", "does not say which instructions"),
    ],
)
def test_bf16_is_taken_where_the_processor_has_instructions_for_it(cpu_info, precision, reason):
    arithmetic = processor_arithmetic(cpu_info, {})
    assert arithmetic.precision == precision and reason in arithmetic.reason


@pytest.mark.parametrize("variable", LIMITS)
@pytest.mark.parametrize(
    ("limit", "precision"),
    [
        ("AVX2", "fp32"),
        ("avx2_vnni_2", "fp32"),
        ("AVX512_CORE", "fp32"),
        ("AVX512_CORE_BF16", "bf16"),
        ("AVX512_CORE_AMX", "bf16"),
        ("DEFAULT", "bf16"),
        ("", "bf16"),
    ],
)
def test_instructions_that_a_limit_takes_away_do_not_count(variable, limit, precision):
    arithmetic = processor_arithmetic(SAPPHIRE_RAPIDS, {variable: limit})
    assert arithmetic.precision == precision
    assert (f"{variable}={limit} keeps" in arithmetic.reason) == (precision == "fp32")


def test_the_first_limit_that_is_set_counts():
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "DNNL_MAX_CPU_ISA": "AVX2"}
    assert processor_arithmetic(ZEN_4, limits).precision == "bf16"


def test_the_limit_of_torchs_own_kernels_leaves_bf16_products_fast():
    assert processor_arithmetic(ZEN_4, {"ATEN_CPU_CAPABILITY": "avx2"}).precision == "bf16"


@pytest.mark.skipif(not CPU_INFO.is_file(), reason="needs Linux")
def test_a_limit_on_this_machine_means_fp32(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert fast_arithmetic("cpu").precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_of_another_machine_is_taken_to_have_bf16():
    assert fast_arithmetic("cuda").precision == "bf16"


def test_a_product_is_measured_in_both_precisions():
    assert bf16_slowdown() > 0
    assert bf16_slowdown(learns=True) > 0


def test_only_emulated_bf16_warns_and_says_how_slow_it_is(monkeypatch, tmp_path):
    cpu_info = tmp_path / "cpuinfo"
    monkeypatch.setattr("schemas.arithmetic.CPU_INFO", cpu_info)
    monkeypatch.setattr("schemas.arithmetic.bf16_slowdown", lambda device, learns: 23.96)
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    cpu_info.write_text(ZEN_3)
    warning = emulation_warning("score.precision", "bf16", "cpu")
    assert warning is not None
    assert warning.startswith("score.precision is bf16, but the processor has no bf16 instructions")
    assert "takes 24.0 times as long in bf16 as in fp32 here" in warning
    assert emulation_warning("score.precision", "fp32", "cpu") is None
    cpu_info.write_text(ZEN_4)
    assert emulation_warning("score.precision", "bf16", "cpu") is None


KERNELS = """
import os
from schemas.arithmetic import keep_kernels_apart
keep_kernels_apart()
print(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
"""


@pytest.mark.slow
def test_kernels_are_kept_by_the_instructions_that_a_process_may_use(tmp_path: Path) -> None:
    folders = set()
    for limits in ({"ATEN_CPU_CAPABILITY": "default"}, {"ONEDNN_MAX_CPU_ISA": "AVX2/../x"}, {}):
        environment = {**os.environ, **limits, "TMPDIR": str(tmp_path)}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True
        )
        folder = Path(done.stdout.strip())
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        folders.add(folder)
    assert len(folders) == 3


def test_kernels_are_kept_where_the_user_says(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "here")
    keep_kernels_apart()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "here"


def test_the_folder_that_torch_names_by_itself_is_nobodys_choice(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    cache_dir()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).name.startswith("torchinductor_")
    keep_kernels_apart()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).name.startswith("aligngpt-kernels-")


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_product_has_the_same_bits_wherever_its_factors_lie(rows):
    pictures, weights = torch.randn(rows, 100), torch.randn(130, 100)
    products = {
        torch.nn.functional.linear(_moved(pictures, left), _moved(weights, right)).numpy().tobytes()
        for left in (0, 4, 7)
        for right in range(16)
    }
    assert len(products) == 1


def _moved(values: torch.Tensor, places: int) -> torch.Tensor:
    """Returns the values, so many places behind an aligned address."""
    room = torch.empty(values.numel() + places)
    return room[places:].view(values.shape).copy_(values)


def test_products_are_made_reproducible(monkeypatch):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    keep_products_reproducible()
    assert os.environ["MKL_CBWR"] == "AUTO"


def test_who_has_chosen_how_mkl_sums_keeps_the_choice(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    keep_products_reproducible()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
