"""Models that train and serve share, for want of a class in transformers: the part of hubctl with torch."""
