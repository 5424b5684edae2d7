"""What the domain of classifier-guided images is made of."""
