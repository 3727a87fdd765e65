import apache_beam as beam
import numpy as np
from apache_beam.coders import PickleCoder

from pipeline.job.dry_run.pickles import pickles_of


class Greet(beam.DoFn):
    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def process(self, name, others):
        yield f"{self.word} {name}"


class LargestOf(beam.CombineFn):
    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


class OwnCoder(PickleCoder):
    """Pickled by its name."""


def test_functions_of_every_kind_are_found_with_the_texts_in_them():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    names = pipeline | "Names" >> beam.Create(["word-in-create"])
    _ = names | "Greet" >> beam.ParDo(Greet("word-in-dofn"), beam.pvalue.AsList(names))
    _ = names | "Largest" >> beam.CombineGlobally(LargestOf("word-in-combine"))
    beam.coders.registry.register_coder(np.uint8, OwnCoder)
    try:
        _ = names | "Code" >> beam.Map(len).with_output_types(np.uint8) | beam.Reshuffle()
        found = pickles_of(pipeline.to_runner_api())
    finally:
        beam.coders.registry._coders.pop(np.uint8)
    places = {
        word: {one.owner.split("/")[0] for one in found if f"word-in-{word}".encode() in one.plain}
        for word in ("create", "dofn", "combine")
    }
    assert (places["create"], places["dofn"]) == ({"Names"}, {"Greet"})
    assert places["combine"] == {"Largest"}
    assert any(b"OwnCoder" in one.plain for one in found)
