"""A notebook behind a queue: Python cells whose variables stay, for each session its own.

`bridge` is the bridge. `python -m examples.notebook` shows what becomes of sessions when a node is killed.
"""
