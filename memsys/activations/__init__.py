"""Activations: saved tensors that leave memory in forward and come back for backward."""
