"""How layers share a budget of zeros or bits."""
