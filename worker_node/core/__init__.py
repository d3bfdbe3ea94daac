"""The decisions of a node, without IO, clock or chance: events and `now` in, frozen actions out."""
