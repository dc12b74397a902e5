"""What memsys can tell about the machine and about a run."""
