"""The cells that the search for near-duplicates divides embeddings into."""

import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from scoring.duplicates import cells
from scoring.duplicates.cells import (
    MARGIN,
    REACH,
    assign_cells,
    canonical_sample,
    cell_count,
    content_hashes,
    nearest,
    nearest_cell,
    train_cells,
)
from tests.scoring.duplicates.test_search import clustered, unit


def test_the_sample_and_the_cells_are_the_same_bytes_in_any_order():
    vectors = clustered(3000)
    shuffled = vectors[np.random.default_rng(5).permutation(len(vectors))]
    sample, other = (
        canonical_sample(rows, content_hashes(rows), 1000) for rows in (vectors, shuffled)
    )
    assert sample.tobytes() == other.tobytes()
    assert train_cells(sample, 20).tobytes() == train_cells(other, 20).tobytes()


def test_homes_near_a_border_are_those_of_exact_arithmetic(monkeypatch):
    centroids = train_cells(clustered(2000), 30)
    nudge = np.random.default_rng(6)
    between = centroids[nudge.integers(0, 30, (500, 2))].sum(axis=1)
    vectors = unit(between + 1e-6 * nudge.standard_normal(between.shape))
    homes = assign_cells(vectors, centroids, 0.95)

    def nearly(vectors, centroids, count, device):
        cosines = vectors @ centroids.T
        cosines += nudge.uniform(-MARGIN / 4, MARGIN / 4, cosines.shape).astype(np.float32)
        places = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(cosines, places, axis=1), places

    monkeypatch.setattr("scoring.duplicates.cells.nearest", nearly)
    for _ in range(5):
        found = assign_cells(vectors, centroids, 0.95)
        assert (found[:, 0] == homes[:, 0]).all()
        assert (np.sort(found) == np.sort(homes)).all()


def nearest_cells(vectors, centroids):
    cosines = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    return cosines, np.argsort(-cosines, axis=1)


def test_each_embedding_is_at_home_in_its_nearest_cell():
    vectors = clustered(2000)
    centroids = train_cells(vectors, 30)
    homes = assign_cells(vectors, centroids, 0.95)
    assert homes[:, 0].tolist() == nearest_cells(vectors, centroids)[1][:, 0].tolist()
    assert (train_cells(vectors, 30) == centroids).all()


def test_an_embedding_visits_the_cells_whose_border_is_within_reach_and_no_others():
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    cosines, order = nearest_cells(vectors, centroids)
    homes = assign_cells(vectors, centroids, 0.9, probes=20)
    reach = REACH * 0.05**0.5
    for row in range(len(vectors)):
        home = order[row, 0]
        widths = np.linalg.norm(centroids[home].astype(np.float64) - centroids, axis=1)
        is_near = cosines[row, home] - cosines[row] <= reach * widths
        assert set(homes[row][homes[row] >= 0]) == set(np.flatnonzero(is_near))
    assert 1 < (homes >= 0).sum(axis=1).mean() < 10


def test_an_embedding_visits_no_more_cells_than_probes(monkeypatch):
    monkeypatch.setattr("scoring.duplicates.cells.REACH", 10.0)
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    homes = assign_cells(vectors, centroids, 0.5, probes=3)
    assert homes.tolist() == nearest_cells(vectors, centroids)[1][:, :3].tolist()


def test_cells_are_the_same_with_and_without_the_table_of_their_distances(monkeypatch):
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    with_table = assign_cells(vectors, centroids, 0.9)
    monkeypatch.setattr("scoring.duplicates.cells.TABLE_CELLS", 1)
    assert (assign_cells(vectors, centroids, 0.9) == with_table).all()


def test_one_thread_at_a_time_uses_the_resources_of_the_gpu(monkeypatch):
    inside = []

    def knn_gpu(resources, vectors, centroids, count, metric, device):
        assert device == 1
        inside.append(resources)
        time.sleep(0.02)
        assert len(inside) == 1
        inside.pop()
        return faiss.knn(vectors, centroids, count, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    vectors, centroids = clustered(50), clustered(10)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: nearest(vectors, centroids, 2, "cuda:1")[1], range(8)))
    expected = nearest(vectors, centroids, 2, "cpu")[1]
    assert all((places == expected).all() for places in found)
    cells._gpu.cache_clear()


def test_cells_are_where_the_embeddings_are():
    vectors = clustered(3000, centres=30)
    centroids = train_cells(vectors, 30)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    at_random = vectors[np.random.default_rng(0).choice(3000, 30, replace=False)]
    gain = (vectors @ centroids.T).max(axis=1).mean() - (vectors @ at_random.T).max(axis=1).mean()
    assert gain > 0.1


def test_an_embedding_between_equal_centres_is_at_home_in_the_first():
    centroids = unit(np.eye(8))[[3, 1, 1, 2]]
    assert nearest_cell(unit(np.eye(8))[[1, 2]], centroids, "cpu").tolist() == [1, 3]
    assert nearest_cell(unit(np.ones((1, 8))), centroids, "cpu").tolist() == [0]


def test_an_image_that_stands_there_often_is_one_centre_and_its_cells_are_the_same_in_any_block(
    monkeypatch,
):
    vectors = clustered(1000)
    generator = np.random.default_rng(1)
    copies = np.repeat(vectors[:1], 1500, axis=0)
    copies[:300] += 0.02 * generator.standard_normal((300, 64)).astype(np.float32)
    vectors = unit(np.concatenate([vectors, copies]))
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    centroids = train_cells(vectors, 50)
    assert len(np.unique(centroids, axis=0)) == len(centroids) > 40
    at_once = assign_cells(vectors, centroids, 0.9)
    monkeypatch.setattr("scoring.duplicates.cells.BLOCK_ROWS", 1)
    assert (assign_cells(vectors, centroids, 0.9) == at_once).all()


def test_copies_of_one_image_alone_share_one_cell():
    assert len(train_cells(np.repeat(clustered(1), 500, axis=0), 10)) == 1


def test_fewer_embeddings_than_cells_share_one_cell():
    centroids = train_cells(clustered(10), 500)
    assert len(centroids) == 1
    assert assign_cells(clustered(10), centroids, 0.95).tolist() == [[0]] * 10


def test_more_embeddings_get_more_cells():
    assert cell_count(10) == 1
    assert cell_count(1_000_000) == 1000
