"""The page's sections about a study, from what its folder holds."""
