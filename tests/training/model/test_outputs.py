"""What the language model reads, once it is embedded."""

import pytest
import torch

from schemas.errors import ConfigError
from training.model.outputs import AlignGPTOutput, Embedded, embedded_before


def test_weights_of_the_gate_are_those_of_the_places_that_were_taken():
    weights = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.3, 0.7]])
    used = torch.tensor([True, False, True])
    found = Embedded(torch.zeros(1, 2, 3), gate_weights=weights, is_used=used).used_gate_weights()
    assert found is not None and torch.equal(found, weights[[0, 2]])
    assert Embedded(torch.zeros(1, 2, 3)).used_gate_weights() is None


def test_embeddings_of_the_caller_go_with_nothing_else():
    embeddings = torch.zeros(1, 2, 3)
    assert embedded_before(embeddings, [None, None]).embeddings is embeddings
    for given, others in ((embeddings, [None, embeddings]), (None, [None])):
        with pytest.raises(ConfigError, match="or inputs_embeds alone"):
            embedded_before(given, others)


def test_an_output_is_a_tuple_of_what_there_is():
    loss, logits = torch.tensor(1.0), torch.zeros(1, 2, 3)
    assert AlignGPTOutput(loss=loss, logits=logits).to_tuple() == (loss, logits)
