"""What training documents and validation documents have in common: copies, near copies, n-grams."""
