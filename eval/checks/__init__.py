"""What is wrong with a task's items and requests, found before any of them is scored."""
