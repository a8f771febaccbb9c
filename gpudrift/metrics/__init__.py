"""The metrics: a file each, the formula in its module docstring. ``gpudrift.panel`` calls them in order."""
