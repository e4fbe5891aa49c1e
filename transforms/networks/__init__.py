"""The transforms of the papers, one file each."""
