"""Checks of a recipe before it is run, and the memory that it needs."""
