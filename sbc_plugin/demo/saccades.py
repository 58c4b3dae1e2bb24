"""Still images seen by a simulated event camera that makes three saccades, as N-MNIST was recorded.

An event camera reports, for each pixel, when the logarithm of its intensity has risen (ON) or fallen (OFF) by a
threshold since the pixel's last event. A still image shows it nothing, so the camera moves along a triangle, in three
straight saccades that end where they began.

Source: Orchard, Jayawant, Cohen, Thakor, "Converting static image datasets to spiking neuromorphic datasets using
saccades", Frontiers in Neuroscience 9 (2015).
"""

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError

TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)  # (row, column)

# In thresholds. Back where it began, the camera sees each pixel a whole number of thresholds away from its reference:
# without a tolerance, rounding would decide whether it fires.
TOLERANCE = 1e-3


def saccade_path(steps: int, amplitude: float) -> Tensor:
    """Where the image stands at the start and after each step, (steps + 1, 2): rows and columns, in pixels.

    The three saccades are equally long in time. The corners of the triangle are (0, 0), (a, a), (a, -a).

    >>> saccade_path(steps=3, amplitude=2.0).tolist()
    [[0.0, 0.0], [2.0, 2.0], [2.0, -2.0], [0.0, 0.0]]
    """
    progress = torch.arange(steps + 1, dtype=torch.float64) * 3 / steps
    saccade = progress.floor().clamp(max=2).long()
    start, end = TRIANGLE[saccade], TRIANGLE[saccade + 1]
    return amplitude * torch.lerp(start, end, (progress - saccade)[:, None])


def shifted(images: Tensor, rows: float, columns: float) -> Tensor:
    """Images (N, H, W) moved by a fraction of pixels, linearly interpolated; what enters repeats the border. (N, H, W).

    >>> shifted(torch.tensor([[[0.0, 4.0, 0.0, 0.0]]]), rows=0.0, columns=1.5).tolist()
    [[[0.0, 0.0, 2.0, 2.0]]]
    """
    for distance in (columns, rows):  # the last axis, then, transposed, the other one
        size = images.shape[-1]
        source = (torch.arange(size, dtype=torch.float64, device=images.device) - distance).clamp(0, size - 1)
        before = source.floor().long()
        after = (before + 1).clamp(max=size - 1)
        images = torch.lerp(images[..., before], images[..., after], (source - before).to(images.dtype)).mT
    return images


def saccade_events(
    images: Tensor, steps: int = 20, threshold: float = 0.25, amplitude: float = 2.0, dark: float = 0.1
) -> Tensor:
    """Events (steps, N, 2, H, W), uint8: 1 where a pixel fired in a step; channel 0 is ON (brighter), 1 OFF (darker).

    A pixel fires at most once a step; its reference then moves by as many whole thresholds as the change was worth, so
    that what is left of the change counts towards the next event. Nothing is random.

    Args:
        images: (N, H, W), intensities in [0, 1].
        steps: length of the sequence; three saccades share it equally.
        threshold: change of log intensity that makes an event, dimensionless.
        amplitude: half the width of the triangle, in pixels.
        dark: intensity added to all pixels before the logarithm, the photoreceptor's dark current.

    Raises:
        SettingsError: the images are not (N, H, W), or ``steps``, ``threshold`` or ``dark`` is not positive.
    """
    if images.dim() != 3:
        raise SettingsError(f"images have shape {tuple(images.shape)}, expected (N, H, W)")
    if steps < 1 or threshold <= 0 or dark <= 0:
        raise SettingsError(f"steps={steps}, threshold={threshold:g} and dark={dark:g} have to be positive")
    path = saccade_path(steps, amplitude).tolist()
    reference = (shifted(images, *path[0]) + dark).log()
    events = torch.zeros(steps, len(images), 2, *images.shape[1:], dtype=torch.uint8, device=images.device)
    for step, position in enumerate(path[1:]):
        change = (shifted(images, *position) + dark).log() - reference
        crossings = change.sign() * (change.abs() / threshold + TOLERANCE).floor()
        reference = reference + crossings * threshold
        events[step, :, 0] = crossings > 0
        events[step, :, 1] = crossings < 0
    return events
