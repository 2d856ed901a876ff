"""What a difference between designs is worth: over seeds and text, designs and looks."""
