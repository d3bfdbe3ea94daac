"""A bridge whose result comes in pieces, as a language model's does: `python -m examples.stream_words`."""
