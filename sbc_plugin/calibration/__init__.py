"""Running a model on data and looking at it: batches, forward passes, and the Hessian of each layer."""
