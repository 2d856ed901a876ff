"""What lm-eval defines: its own tasks by name, group and pattern, and the text that they ask for."""
