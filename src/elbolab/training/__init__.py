"""Training: the loop, its checkpoints, how it resumes, and how several processes or models share it."""
