"""MMBench-CN: MMBench in Chinese."""

from typing import ClassVar

from training.evaluation.benchmarks.mmbench import MMBench


class MMBenchCN(MMBench):
    """As MMBench, with the Chinese table and suffix."""

    name = "mmbench_cn"
    title = "MMBench-CN"
    aliases: ClassVar[tuple[str, ...]] = ("mmb_cn", "mmbench_dev_cn")
    folders = ("mmbench_cn", "MMBench_CN", "mmbench", "MMBench")
    split = "dev (mmbench_dev_cn_20231003), circular"
    layout = ("mmbench_dev_cn_20231003.tsv; or Parquet of lmms-lab/MMBench, config cn",)
    source = "opencompass (mmbench_dev_cn_20231003.tsv), lmms-lab/MMBench"
    questions = 4329
    paper = {"7B": 59.9, "13B": 63.7}  # noqa: RUF012
    suffix = "\n请直接回答选项字母。"
    tables = {  # noqa: RUF012
        "dev": ("mmbench_dev_cn_20231003.tsv", "mmbench_dev_cn_*.tsv", "MMBench_DEV_CN*.tsv"),
        "test": ("mmbench_test_cn_*.tsv", "MMBench_TEST_CN*.tsv"),
    }
    config = "cn"


BENCHMARK = MMBenchCN()
