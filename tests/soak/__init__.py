"""Small whole runs under seeded faults, compared with the run that nobody disturbed: see `__main__.py`."""
