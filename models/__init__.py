"""The codecs: one file per paper, and what makes them file formats."""
