"""A small web site with real pictures and faults, and an undisturbed curation of it."""

import csv

import pytest

from pipeline.cli import parse
from pipeline.job.inspection import remember_inspections
from tests.curations import CORPUS, curate, write_pairs
from tests.web_server import ALLOWED_HOST, WebServer

remember_inspections()  # as every job does: half of the time of a graph of small steps


@pytest.fixture(scope="session")
def site():
    """A web site with stamps of the bundled corpus, one of them twice, and faults."""
    server = WebServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rows(site):
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        stamps = list(csv.DictReader(file, delimiter="\t"))[:40]
    pairs = [
        (site.serve(f"/{number}.png", (CORPUS / stamp["file"]).read_bytes()), stamp["caption"])
        for number, stamp in enumerate(stamps)
    ]
    picture = (CORPUS / stamps[0]["file"]).read_bytes()
    return [
        *pairs,
        pairs[5],
        (site.serve("/again.png", picture), "the same picture elsewhere"),
        (site.url("/gone.png"), "a picture that is gone"),
        (site.serve("/page.png", b"<!doctype html><p>no picture"), "a page"),
        (site.serve("/half.png", picture[: len(picture) // 2]), "half a picture"),
        (site.redirect("/inside", "http://10.0.0.1/secret.png"), "a private address"),
        ("http://127.0.0.3/x.png", "a forbidden address"),
        ("", "no address"),
    ]


@pytest.fixture(scope="session")
def pairs(rows, tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("input"), rows)


@pytest.fixture(scope="session")
def flags(site, tiny_clip):
    """The configuration as words of the command line."""
    words = (
        f"--read.pairs-per-shard 12 --pack.samples-per-shard 16 --levels.num-levels 4 "
        f"--deduplicate.threshold 2.0 --fetch.connections 8 --fetch.timeout-seconds 60 "
        f"--fetch.retries 0 --fetch.allow-networks {ALLOWED_HOST}/32 --fetch.allow-ports 80 "
        f"{site.port} --fetch.decode-processes 1 --fetch.image-size 48 --score.device cpu "
        f"--score.model local-dir:{tiny_clip.folder} --score.batch-size 4 --score.threads 1 "
        f"--score.decode-threads 1"
    )
    return words.split()


@pytest.fixture(scope="session")
def config(flags):
    return parse(["curate", "--pairs", "none", "--out", "none", *flags]).config


@pytest.fixture(scope="session")
def curated(config, pairs, tmp_path_factory):
    """An undisturbed curation by one worker: its folder, its manifest and what it said."""
    root = tmp_path_factory.mktemp("curated")
    manifest, said = curate(config, pairs, root)
    return root, manifest, said


@pytest.fixture(autouse=True)
def leaves_what_is_shared(request):
    """Fails the test that changes the shared curation, or its records, not those after it."""
    shares = "curated" in request.fixturenames and request.getfixturevalue("curated")
    before = files_of(shares[0]) if shares else {}
    yield
    if shares:
        assert files_of(shares[0]) == before, "work on a copy of what `curated` returns"


def files_of(root):
    """Returns every file below a folder with its size and when it was written."""
    found = [(path, path.stat()) for path in root.rglob("*") if path.is_file()]
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}
