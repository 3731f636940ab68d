"""Worlds of drawn questions: the same arguments give the same question."""
