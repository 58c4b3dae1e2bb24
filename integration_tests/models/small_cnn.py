"""A plain CNN with each kind of convolution that flows for images meet: depthwise, pointwise, grouped, a residual."""

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Images (B, 1, H, W) to ten scores.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        wide = 2 * width
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(width), nn.ReLU())
        self.pointwise = nn.Sequential(nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide))
        self.shortcut, self.relu = nn.Conv2d(width, wide, 1), nn.ReLU()
        self.grouped = nn.Sequential(nn.Conv2d(wide, wide, 3, stride=2, groups=4), nn.BatchNorm2d(wide), nn.ReLU())
        self.pool, self.flatten, self.last = nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(4 * wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 10)."""
        x = self.first(x)
        x = self.relu(self.pointwise(self.depthwise(x)) + self.shortcut(x))
        x = self.flatten(self.pool(self.grouped(x)))
        result: Tensor = self.last(x)
        return result


def random_cnn(seed: int = 0) -> SmallCNN:
    """With random weights, and statistics of BatchNorm that fit them."""
    torch.manual_seed(seed)
    model = SmallCNN()
    for _ in range(20):
        model(torch.randn(32, 1, 8, 8))
    return model.eval()
