"""`memsys verify script.py`: a training script run twice in processes of its own, its gradients compared."""
