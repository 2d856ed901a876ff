"""A page that follows runs under way: read, drawn and served anew while they train."""
