"""Compress trained spiking networks in one shot, with a Hessian of the membrane potential, not of the input current."""

__version__ = "0.1.0.dev0"
