"""Queue: who should look at what, and what the looks tell about all that nobody looked at."""
