"""The demo: handwritten digits seen by an event camera, a small spiking network, and what compression does to it."""
