"""Sampling and log-probabilities with each image and each prompt computed once per question."""
