"""AlignGPT: the model, its data, the DeepSpeed loop, evaluation and chat."""
