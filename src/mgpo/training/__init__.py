"""Training by MGPO and its baselines."""
