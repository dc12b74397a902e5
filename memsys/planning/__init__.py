"""Plans: what a step keeps, swaps, recomputes and drops, and at which addresses. Pure: numbers in, numbers out."""
