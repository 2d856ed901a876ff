"""The benchmark's published results as data: single, unpaired runs on ClimbMix, with where they are from."""
