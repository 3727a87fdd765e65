import numpy as np
import pytest
import torch.distributed as dist

from training.data.lengths import SampleLengths
from training.evaluation.validation import validation_order


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_has_as_many_rows_and_each_sample_is_read_once(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.array([5, 0, 7, 3, 9, 2])
    lengths = SampleLengths(tokens=tokens, targets=tokens)
    shares = []
    for process in range(processes):
        monkeypatch.setattr(dist, "get_world_size", lambda: processes)
        monkeypatch.setattr(dist, "get_rank", lambda rank=process: rank)
        shares.append(validation_order(range(6), lengths, 10))
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for (row,) in share]
    assert sorted(sample for row in rows for sample in row) == [0, 2, 3, 4, 5]
    assert all(sum(tokens[sample] for sample in row) <= 10 for row in rows)
