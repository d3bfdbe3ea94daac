"""The demo's bridge: Python source in, its shape out. `python -m examples.analyse`.

`analysis` is the work itself and knows nothing of bridges, so that its results can be had in-process too.
"""
