"""What the domain of inverse problems is made of."""
