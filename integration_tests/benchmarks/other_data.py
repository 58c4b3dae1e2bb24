"""Calibration data that the network will not meet: other classes, another encoder, noise."""

import torch

from sbc_plugin.demo.digits import Events


def half_of_the_classes(events: Events, generator: torch.Generator) -> Events:
    """Only sequences of the first half of the classes."""
    return events.subset((events.labels <= events.labels.max() // 2).nonzero()[:, 0])


def rate_coded(events: Events, generator: torch.Generator) -> Events:
    """Another encoder: each input spikes by chance, as often as it does in this sequence."""
    rates = events.x.float().mean(0, keepdim=True).expand(events.x.shape)
    return Events(torch.bernoulli(rates, generator=generator).to(events.x.dtype), events.labels)


def noise(events: Events, generator: torch.Generator) -> Events:
    """Every input spikes by chance, all equally often."""
    rates = events.x.float().mean().expand(events.x.shape)
    return Events(torch.bernoulli(rates, generator=generator).to(events.x.dtype), events.labels)
