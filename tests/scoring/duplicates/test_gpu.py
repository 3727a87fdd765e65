"""Apart from the other tests: a machine with a GPU may lack FAISS, and these then say so."""

import numpy as np
import pytest
import torch

pytest.importorskip("faiss", reason="needs FAISS")

from scoring.duplicates.cells import assign_cells, train_cells
from scoring.duplicates.search import near_duplicate_groups
from tests.scoring.duplicates.test_search import clustered, with_copies


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_trains_the_same_cells_and_finds_the_same_groups():
    vectors = with_copies(clustered(20_000, 256, 200), 2000, 0.01)
    centroids = train_cells(vectors, 100)
    assert train_cells(vectors, 100, device="cuda").tobytes() == centroids.tobytes()
    homes = assign_cells(vectors, centroids, 0.95)
    assert (assign_cells(vectors, centroids, 0.95, device="cuda") == homes).all()
    found = near_duplicate_groups(vectors, 0.95, cells=100, device="cuda")
    assert (found == near_duplicate_groups(vectors, 0.95, cells=100)).all()
    assert len(np.unique(found)) < 20_100
