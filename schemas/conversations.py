"""What a conversation must be to be learnt from, whatever template writes it.

The curation rejects what is not, and the trainer refuses it, by the same rule.
"""

from collections.abc import Sequence


def opening_answers(roles: Sequence[str]) -> int:
    """Returns how many turns at the beginning are left out: 1 where an answer opens it.

    Source: haotian-liu/LLaVA, `preprocess_v1`, which drops a first turn that is not the user's.
    """
    return 1 if roles and roles[0] == "assistant" else 0


def conversation_fault(turns: Sequence[tuple[str, str]]) -> str | None:
    """Returns why nothing can be learnt from a conversation, in words; None if something can.

    Args:
        turns: role (user, assistant or system) and words of each.
    """
    kept = turns[opening_answers([role for role, _ in turns]) :]
    late = next((i for i, (role, _) in enumerate(turns) if role == "system" and i > 0), None)
    if late is not None:
        return f"turn {late} of it is the system's, which speaks first or not at all"
    asked = next((i for i, (role, _) in enumerate(kept) if role == "user"), len(kept))
    answers = [words for role, words in kept[asked:] if role == "assistant"]
    if not answers:
        return "it has no turn of the assistant ('gpt') that answers another's"
    if not any(words.strip() for words in answers):
        return "the assistant ('gpt') says nothing in it"
    return None
