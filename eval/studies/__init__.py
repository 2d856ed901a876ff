"""Studies: designs, sizes, rates and seeds, registered before the first run, trained and judged."""
