"""Spiking Brain Compression: prune and quantise trained spiking networks in one shot, keeping their spike trains."""

import logging

from sbc_plugin.calibration.calibrate import CalibrationStatistics, calibrate
from sbc_plugin.calibration.ranks import alone
from sbc_plugin.calibration.shares import sharded
from sbc_plugin.checkpoint.file import Checkpoint, load, save
from sbc_plugin.cli.spike_files import read_spikes
from sbc_plugin.compression.compress import compress
from sbc_plugin.compression.search import search
from sbc_plugin.compression.sweep import sweep
from sbc_plugin.evaluation.accuracy import accuracy
from sbc_plugin.evaluation.comparing import compare, record_spikes
from sbc_plugin.evaluation.comparison import Comparison
from sbc_plugin.evaluation.evaluate import Evaluation, evaluate
from sbc_plugin.evaluation.inspection import Inspection, inspect
from sbc_plugin.evaluation.operations import Recording
from sbc_plugin.evaluation.recipe import Recipe
from sbc_plugin.evaluation.report import LayerReport, Report
from sbc_plugin.evaluation.search_report import SearchReport
from sbc_plugin.evaluation.sweep_table import SweepTable
from sbc_plugin.settings import Budget, Calibration, Prune, Quantize
from sbc_plugin.version import __version__

__all__ = [
    "Budget",
    "Calibration",
    "CalibrationStatistics",
    "Checkpoint",
    "Comparison",
    "Evaluation",
    "Inspection",
    "LayerReport",
    "Prune",
    "Quantize",
    "Recipe",
    "Recording",
    "Report",
    "SearchReport",
    "SweepTable",
    "__version__",
    "accuracy",
    "alone",
    "calibrate",
    "compare",
    "compress",
    "evaluate",
    "inspect",
    "load",
    "read_spikes",
    "record_spikes",
    "save",
    "search",
    "sharded",
    "sweep",
]

logging.getLogger("sbc_plugin").addHandler(logging.NullHandler())  # whoever wants to see messages adds another
