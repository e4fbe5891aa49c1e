"""Training: data, fitting, and the door to other runtimes."""
