"""Membership inference with canaries: does training protect patients as its ledger says?"""
