"""What happens at each depth of a model: measured on one batch, kept as a table by step, layer and part."""
