"""The cycle: propose, check, queue, then people, then retrain, judge, and the next round."""
