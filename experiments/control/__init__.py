"""Offline reinforcement learning: transitions, behaviour prior, values, rollouts."""
