from dataclasses import asdict

import numpy as np
from open_clip.transform import PreprocessCfg

from scoring.clip.preprocess import ImagePreprocessor, load_batches
from scoring.clip.timing import FeedTime


def test_what_the_pictures_took_is_told() -> None:
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(8, 8))))
    took = FeedTime()
    images = [np.zeros((8, 8, 3), np.uint8)] * 20
    list(load_batches(images, preprocessor, 10, 2, is_pinned=False, took=took))
    assert took.threads == 2
    assert len(took.thread_seconds) == 4
    assert took.seconds == max(took.reading_seconds, sum(took.thread_seconds) / 2) > 0
