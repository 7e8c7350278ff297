"""What `open_sources` reads, in the few forms that tests look at."""

from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.sources.source import open_sources

ROWS = [
    {"id": "a", "prompt": "Grüße?", "response": "Ja, 你好 🙂", "topic": "x"},
    {"id": "b", "prompt": "", "response": "two\nlines", "topic": "y"},
]
PAIRS = [(row["prompt"], row["response"]) for row in ROWS]


def read(data, columns=None, **options):
    return [row for source in open_sources(data, columns, **options) for row in source.samples()]


def pairs(data, columns=None, **options):
    """Prompts and responses of the good rows."""
    rows = read(data, columns, **options)
    return [(row.prompt, row.response) for row in rows if isinstance(row, Sample)]


def metadata(data, **options):
    """Of the good rows."""
    return [dict(row.metadata) for row in read(data, **options) if isinstance(row, Sample)]


def bad(data, columns=None, **options):
    """Everything that is bad, as it is shown to a user, with the name of the folder left out."""
    rows = [row for row in read(data, columns, **options) if isinstance(row, BadRow)]
    return [str(row).rpartition("/")[2] for row in rows]


def raw(data):
    """What is kept of bad rows."""
    return [row.raw for row in read(data) if isinstance(row, BadRow)]
