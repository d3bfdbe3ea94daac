"""Chaos with a loss oracle: requests under load while nodes, bridges and brokers are killed, and the books of it.

python -m chaos     # from tests/, or with it on PYTHONPATH: `make chaos`
"""
