"""What ``compress`` does, step by step: a plan, its stages, and the solution of each layer."""
