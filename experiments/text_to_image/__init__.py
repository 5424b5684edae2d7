"""What the domain of text to image is made of: captioned scenes, and the networks trained on them."""
