"""A clinic's side: the model, the patients, one round, and the Flower app around it."""
