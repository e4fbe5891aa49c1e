"""Turns latents into bytes: latent coders, probability tables, the rANS coder, the container."""
