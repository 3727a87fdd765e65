"""What is taken away from samples so that they fit into sequences, counted and in words."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCounts:
    """What was taken away from how many samples."""

    samples: int = 0
    kept: int = 0
    late: int = 0
    """Left out, longer than a sequence before their first target."""
    cut: int = 0
    """Cut to a sequence."""
    lost_targets: int = 0
    """With that."""
    picture_cut: int = 0
    empty: int = 0
    """Left out, with nothing behind their first token to learn."""
    bad: int = 0
    dropped_turns: int = 0
    special_words: int = 0
    shortest: int = 0
    """Tokens of the shortest sample, whole."""
    longest: int = 0

    def with_part(
        self,
        *,
        tokens: np.ndarray,
        targets: np.ndarray,
        whole_tokens: np.ndarray,
        whole_targets: np.ndarray,
        is_picture_cut: np.ndarray,
        dropped_turns: np.ndarray,
        has_special_words: np.ndarray,
        is_bad: np.ndarray,
    ) -> "LengthCounts":
        """Returns the counts with more samples, of which (n,) what `SampleLength` says is given."""
        is_out = tokens == 0
        is_cut = ~is_out & (tokens < whole_tokens)
        shortest = int(whole_tokens.min(initial=np.iinfo(np.int32).max))
        return LengthCounts(
            samples=self.samples + len(tokens),
            kept=self.kept + int((~is_out).sum()),
            late=self.late + int((is_out & ~is_picture_cut & (whole_targets > 0)).sum()),
            cut=self.cut + int(is_cut.sum()),
            lost_targets=self.lost_targets + int((whole_targets - targets)[is_cut].sum()),
            picture_cut=self.picture_cut + int(is_picture_cut.sum()),
            empty=self.empty + int(((whole_targets == 0) & ~is_bad).sum()),
            bad=self.bad + int(is_bad.sum()),
            dropped_turns=self.dropped_turns + int((dropped_turns > 0).sum()),
            special_words=self.special_words + int(has_special_words.sum()),
            shortest=min(self.shortest, shortest) if self.samples else shortest,
            longest=max(self.longest, int(whole_tokens.max(initial=0))),
        )

    def __str__(self) -> str:
        """Returns what was left out and cut, in words."""
        said = [
            f"{self.late:,} longer than a sequence before their first target and left out",
            f"{self.cut:,} cut to a sequence and {self.lost_targets:,} targets lost with it",
        ]
        seldom = {
            "with a picture behind the end of a sequence and left out": self.picture_cut,
            "with nothing behind their first token to learn and left out": self.empty,
            "that the model's template or tokenizer cannot write and left out": self.bad,
            "without the answer that they open with": self.dropped_turns,
            "with special tokens in someone's words, written apart": self.special_words,
        }
        return ", ".join([*said, *(f"{count:,} {what}" for what, count in seldom.items() if count)])
