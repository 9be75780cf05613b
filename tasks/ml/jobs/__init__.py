"""Lessons as jobs: one process or many, that may come and go."""
