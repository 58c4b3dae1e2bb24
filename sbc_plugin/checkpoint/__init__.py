"""Models in files, and back: never pickle, whole or not at all, equal in every bit."""
