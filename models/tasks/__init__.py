"""What reads latents or images besides a viewer: classifiers."""
