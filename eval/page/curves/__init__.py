"""The report's charts of what runs have logged: losses, differences to the baseline, rates and norms."""
