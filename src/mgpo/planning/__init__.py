"""What a recipe comes to before it is run: checks, and the memory it needs."""
