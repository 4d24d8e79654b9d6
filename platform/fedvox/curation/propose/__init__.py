"""Propose: several models see each case; what they agree on is the consensus, where they do not is attention."""
