"""Bridges to other libraries, one module each: none is imported before you import it, nor is its library."""
