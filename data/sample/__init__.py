"""The embedded sample: English prose made from the installed packages."""
