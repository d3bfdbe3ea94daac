"""The conformance kit: any bridge, driven as a node drives it, and a checklist of what the protocol asks of it.

`checklist.check_bridge` runs it and gives a Report; `quaybridge conformance` prints that. docs/wire.md says what a
bridge must do, docs/bridges.md what it may add so that every check can be made.
"""
