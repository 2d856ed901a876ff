"""A run's folder and what is said and written about it."""
