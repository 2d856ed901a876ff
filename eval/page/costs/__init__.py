"""The page's section on cost: parameters, memory and time, and losses at equal time."""
