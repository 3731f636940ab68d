"""Rows in, questions out."""
