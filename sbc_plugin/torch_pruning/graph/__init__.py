"""torch-pruning's dependency graph, made exact: which channels of which layers have to go together."""
