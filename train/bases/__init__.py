"""Recipes that made the embedded base models; run by hand, never by the product."""
