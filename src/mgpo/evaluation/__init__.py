"""Evaluation on tasks, with controls, and the comparison of its results."""
