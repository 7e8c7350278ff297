"""Data of random words."""

import json
import random

WORDS = [
    *("red", "green", "seven", "house", "river", "over", "under", "quick"),
    *("apple", "stone", "glass", "none", "ü", "→", "42", "[x]"),
]


def rows(count, *, seed=0, words=12, prefix="r"):
    """Prompts and responses of random words, so that values have both signs."""
    chosen = random.Random(seed)
    return [
        {
            "id": f"{prefix}{i}",
            "prompt": " ".join(chosen.choices(WORDS, k=1 + chosen.randrange(words))),
            "response": f"{i} " + " ".join(chosen.choices(WORDS, k=1 + chosen.randrange(words))),
            "topic": ("law", "art", "war")[i % 3],
        }
        for i in range(count)
    ]


def write_jsonl(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return path
