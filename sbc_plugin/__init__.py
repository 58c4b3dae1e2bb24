"""Spiking Brain Compression: prune and quantise trained spiking networks in one shot, keeping their spike trains."""

from sbc_plugin.calibration import calibrate
from sbc_plugin.checkpoint import Checkpoint, load, save
from sbc_plugin.comparison import Comparison, compare, record_spikes
from sbc_plugin.compression import compress
from sbc_plugin.report import LayerReport, Report
from sbc_plugin.settings import Calibration, Prune, Quantize
from sbc_plugin.watching import Recording

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Checkpoint",
    "Comparison",
    "LayerReport",
    "Prune",
    "Quantize",
    "Recording",
    "Report",
    "calibrate",
    "compare",
    "compress",
    "load",
    "record_spikes",
    "save",
]
