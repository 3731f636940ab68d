"""Training by MGPO and its baselines on TRL."""
