"""Turns scored rollouts into new weights: feeder, journal, Megatron step, publication."""
