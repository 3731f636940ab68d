"""How a policy speaks."""
