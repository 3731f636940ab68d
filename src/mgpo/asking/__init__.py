"""Asking a policy about photographs, and the settings that it is asked with."""
