"""Seconds and memory of the offline commands; `*_speed.py` are scripts."""
