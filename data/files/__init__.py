"""Files as such: what tells one content from another, and what the lines of one hold."""
