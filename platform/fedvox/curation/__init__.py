"""Curation: models propose, checks find what is wrong, people look at what matters, models retrain."""
