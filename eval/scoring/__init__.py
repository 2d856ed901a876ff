"""A GPT as a model of lm-eval: how requests become batches, and batches scores."""
