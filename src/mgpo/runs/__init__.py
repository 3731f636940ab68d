"""A run on disk, and what keeps it safe: resuming, stopping, steps that are not finite."""
