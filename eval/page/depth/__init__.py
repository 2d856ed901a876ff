"""The report's sections about what happens at each depth: heat maps by layer and step, and of two layers."""
