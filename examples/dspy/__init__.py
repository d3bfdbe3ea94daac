"""DSPy programs behind a queue: the DSPex bridge, made with the SDK.

Needs the extra: `pip install 'quaybridge[dspy]'`. docs/bridges.md says what its commands are.
"""
