from training.evaluation.catalogue import benchmark, benchmarks


def test_every_benchmark_of_the_paper_is_there() -> None:
    assert len(benchmarks()) >= 12
    assert benchmark("MM-Vet") is benchmark("mmvet")
    assert benchmark("SQA") is benchmark("scienceqa")
