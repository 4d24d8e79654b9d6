"""The server's side: strategies, checks of what clinics send, rounds that can be resumed, and the Flower app."""
