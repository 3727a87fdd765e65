import io
import json
from pathlib import Path
from typing import Any

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.protocol import Benchmark
from training.evaluation.scoring import score_files


def test_a_benchmark_is_one_class_with_its_facts() -> None:
    for chosen in benchmarks().values():
        assert isinstance(chosen, Benchmark)
        assert chosen.layout and chosen.source and chosen.metric and chosen.paper


def test_submissions_are_what_the_published_scripts_wrote(tmp_path: Path) -> None:
    def sent(name: str) -> Any:
        path = getattr(benchmark_folders, name)(tmp_path / name)
        scored = score_files(benchmark(name), str(tmp_path / name), [path])
        submission = scored.benchmark.submission(scored.answers)
        assert submission is not None
        return submission.content

    rows = golden("vqav2")["rows"]
    assert json.loads(sent("vqav2")) == [{"question_id": r[0], "answer": r[5]} for r in rows]
    assert json.loads(sent("vizwiz"))[:3] == golden("vizwiz")["upload_first3"]
    assert json.loads(sent("seed").splitlines()[0]) == {"question_id": "457280", "prediction": "B"}

    from openpyxl import load_workbook

    sheet: Any = load_workbook(io.BytesIO(sent("mmbench"))).active
    table = list(sheet.iter_rows(values_only=True))
    assert list(table[0]) == golden("mmbench")["xlsx_columns"]["AlignGPT"]
    assert table[1][:4] == (177, "Which object is near the garden?", "lamp", "boat")
