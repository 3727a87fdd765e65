"""Whether an answer says yes or no, as POPE's and MME's published scripts read it."""

from dataclasses import dataclass

NO_WORDS = frozenset({"No", "not", "no"})
MME_PREFIX = 4
"""Characters in which MME's tool looks for a yes or no."""


def pope_answer(text: str) -> str:
    """Returns yes or no. Source: eval_pope.py of LLaVA and AlignGPT.

    The first sentence counts, commas deleted, cut at single spaces. What holds none of three
    spellings of no is a yes, an empty answer too.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if NO_WORDS.intersection(words) else "yes"


def mme_answer(text: str) -> str:
    """Returns yes, no or other. Source: calculation.py of MME's eval_tool, which lower-cases."""
    answer = text.lower()
    if answer in ("yes", "no"):
        return answer
    beginning = answer[:MME_PREFIX]
    return next((word for word in ("yes", "no") if word in beginning), "other")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of right and wrong answers, where yes is the positive one."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def of(cls, pairs: "list[tuple[str, str]]") -> "Confusion":
        """Returns the counts of (answer, label) pairs."""
        counts = {
            outcome: sum(pair == outcome for pair in pairs)
            for outcome in (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
        }
        return cls(*counts.values())

    @property
    def total(self) -> int:
        """All answers."""
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return ratio(self.true_positive + self.true_negative, self.total)

    @property
    def precision(self) -> float:
        """The share of yes answers that are right."""
        return ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """The share of yes labels that were answered so."""
        return ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        wrong = self.false_positive + self.false_negative
        return ratio(2 * self.true_positive, 2 * self.true_positive + wrong)

    @property
    def yes_ratio(self) -> float:
        """The share of yes among the answers, not among the labels."""
        return ratio(self.true_positive + self.false_positive, self.total)


def ratio(part: float, whole: float) -> float:
    """Returns a share, 0 of nothing."""
    return part / whole if whole else 0.0
