"""AlignGPT as a transformers model: tower, projector, alignment module, language model."""
