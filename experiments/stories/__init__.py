"""Story infilling: stories, their words, and what an infill says."""
