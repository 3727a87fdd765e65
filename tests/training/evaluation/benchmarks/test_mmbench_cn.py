from pathlib import Path

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import read, score_of
from training.evaluation.benchmarks.mmbench_cn import BENCHMARK
from training.evaluation.scoring import score_files


def test_the_chinese_table_is_asked_with_its_own_suffix_and_scored_as_mmbench(
    tmp_path: Path,
) -> None:
    path = benchmark_folders.mmbench(tmp_path, "mmbench_dev_cn_20231003.tsv")
    assert all(q.prompt.endswith("\n请直接回答选项字母。") for q in read("mmbench_cn", tmp_path))
    scored = score_files(BENCHMARK, str(tmp_path), [path])
    english = tmp_path / "english"
    same = benchmark_folders.mmbench(english)
    assert scored.score == score_of("mmbench", english, same)
