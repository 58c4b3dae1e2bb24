"""A spike-driven Transformer for still images (T, B, 1, 28, 28): scores (B, 10).

Everything a weight receives is binary: queries, keys and values are spikes, attention is a mask, and residual
connections add currents. Source: Yao et al., "Spike-driven Transformer", NeurIPS 2023, arXiv 2307.01694.
"""

from torch import Tensor, nn

from integration_tests.benchmarks.networks.neurons import INITIAL_DEVIATION, Spiking, SumOverTime, conv

TAU = 2.0  # steps


class Projection(nn.Module):
    """A linear map of each token, without bias, and BatchNorm over its features: (T, B, tokens, features)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)
        nn.init.constant_(self.norm.weight, INITIAL_DEVIATION)

    def forward(self, tokens: Tensor) -> Tensor:
        current: Tensor = self.linear(tokens)
        normalised: Tensor = self.norm(current.flatten(0, 2))
        return normalised.view_as(current)


class Attention(nn.Module):
    """Spike-driven self-attention: where keys and queries coincide in enough tokens, a channel of the query passes.

    The paper's operator: the column sum of ``q * k`` over tokens is the current of one neuron a channel, and its spike
    masks the values.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query, self.query_spikes = Projection(features, features), Spiking(TAU)
        self.key, self.key_spikes = Projection(features, features), Spiking(TAU)
        self.value, self.value_spikes = Projection(features, features), Spiking(TAU)
        self.mask_spikes = Spiking(TAU)
        self.output = Projection(features, features)

    def forward(self, spikes: Tensor) -> Tensor:
        query = self.query_spikes(self.query(spikes))
        key = self.key_spikes(self.key(spikes))
        value = self.value_spikes(self.value(spikes))
        mask = self.mask_spikes((query * key).sum(2, keepdim=True))
        attended: Tensor = self.output(mask * value)
        return attended


class Block(nn.Module):
    """Attention and a two-layer perceptron, each between neurons and a residual connection of currents."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(Spiking(TAU), Attention(features))
        self.perceptron = nn.Sequential(
            Spiking(TAU), Projection(features, 2 * features), Spiking(TAU), Projection(2 * features, features)
        )

    def forward(self, current: Tensor) -> Tensor:
        current = current + self.attention(current)
        added: Tensor = current + self.perceptron(current)
        return added


class Tokens(nn.Module):
    """The convolutional stem: (T, B, 1, 28, 28) to currents (T, B, 16, features), positions learned by convolution."""

    def __init__(self, features: int, channels: int = 1) -> None:
        super().__init__()
        quarter, half = features // 4, features // 2
        self.current = nn.Sequential(
            conv(channels, quarter, stride=2),
            Spiking(TAU),
            conv(quarter, half, stride=2),
            Spiking(TAU),
            conv(half, features, stride=2),
        )
        self.position = nn.Sequential(Spiking(TAU), conv(features, features))

    def forward(self, x: Tensor) -> Tensor:
        current = self.current(x)
        current = current + self.position(current)
        tokens: Tensor = current.flatten(3).transpose(2, 3)
        return tokens


class MeanToken(nn.Module):
    """The mean over tokens, (T, B, features)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(2)


def spike_transformer(features: int = 48, blocks: int = 4) -> nn.Module:
    """Stem, blocks, neurons, the mean over tokens, one linear layer."""
    return nn.Sequential(
        Tokens(features),
        *(Block(features) for _ in range(blocks)),
        Spiking(TAU),
        MeanToken(),
        nn.Linear(features, 10),
        SumOverTime(),
    )
