"""Weights in files: packed, checked, and read without ever being in memory as a whole."""
