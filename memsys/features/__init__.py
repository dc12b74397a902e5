"""Tables of rows that stay in host memory, and the rows a step needs, gathered from there."""
