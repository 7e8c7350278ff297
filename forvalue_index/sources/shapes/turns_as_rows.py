"""Rows that are single turns of conversations, and no documents, though they have a text."""

from __future__ import annotations

from forvalue_index.exceptions import BadSampleError

# Of OpenAssistant's flat files, and of dialogues: who speaks, and what numbers the turns.
TREE_ROWS = {"message_id", "parent_id", "role", "text"}
WHO = ("speaker", "role", "author", "from", "sender")
NUMBERS = {
    *("id", "turn", "index", "idx", "turn_id", "turn_idx", "turn_index", "utterance_id"),
    *("message_id", "parent_id", "dialogue_id", "dialog_id", "conversation_id", "thread_id"),
    *("timestamp", "date", "time"),
}


def refuse_turns_as_rows(names: tuple[str, ...]) -> None:
    """Raise BadSampleError for columns that are those of single turns."""
    lower = {name.lower() for name in names}
    if lower >= TREE_ROWS:
        raise BadSampleError(
            f"the columns {', '.join(sorted(TREE_ROWS))} are those of single messages of "
            "OpenAssistant trees; use its file of trees (ready.trees.jsonl), or join each path of "
            "messages to a row with messages"
        )
    who = [name for name in WHO if name in lower]
    if who and lower <= {"text", *WHO} | NUMBERS:
        raise BadSampleError(
            f"the row is one turn of a dialogue, with {who[0]} and text; join the turns of each to "
            "a row with messages, or read them as documents with --columns text=text"
        )
