"""From latents to bytes: what a model talks to, probability tables, the coder, the container."""
