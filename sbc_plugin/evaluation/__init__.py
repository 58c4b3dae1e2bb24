"""What compression did to a model: spikes, operations, size and accuracy, as objects, tables and a page."""

from sbc_plugin.evaluation.accuracy import accuracy
from sbc_plugin.evaluation.comparison import Comparison, NeuronComparison, compare, record_spikes
from sbc_plugin.evaluation.evaluate import Activity, Evaluation, evaluate
from sbc_plugin.evaluation.inspection import Inspection, LayerPlan, inspect
from sbc_plugin.evaluation.operations import Cost, Recording
from sbc_plugin.evaluation.page import page
from sbc_plugin.evaluation.report import LayerReport, Report

__all__ = [
    "Activity",
    "Comparison",
    "Cost",
    "Evaluation",
    "Inspection",
    "LayerPlan",
    "LayerReport",
    "NeuronComparison",
    "Recording",
    "Report",
    "accuracy",
    "compare",
    "evaluate",
    "inspect",
    "page",
    "record_spikes",
]
