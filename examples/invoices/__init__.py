"""A service with an Api: the class that its callers bind, and that its bridge implements."""
