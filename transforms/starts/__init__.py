"""Data-independent and data-dependent initialisations of transforms."""
