"""Makes the Auto classes of transformers know AlignGPT; `import training.model.auto` is all."""

from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTImageProcessor",
    "AlignGPTProcessor",
]
