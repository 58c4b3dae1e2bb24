"""What compression did to a model: spikes, operations, size and accuracy, as objects, tables and a page."""

from sbc_plugin.evaluation.accuracy import accuracy
from sbc_plugin.evaluation.answers import Answers, Check
from sbc_plugin.evaluation.comparing import compare, record_spikes
from sbc_plugin.evaluation.comparison import Comparison, LayerOperations, NeuronComparison
from sbc_plugin.evaluation.evaluate import Activity, Evaluation, evaluate
from sbc_plugin.evaluation.inspection import Inspection, LayerPlan, inspect
from sbc_plugin.evaluation.operations import Cost, Recording
from sbc_plugin.evaluation.page import page
from sbc_plugin.evaluation.points import Point
from sbc_plugin.evaluation.report import LayerReport, Report
from sbc_plugin.evaluation.runtime import Runtime, RuntimeComparison
from sbc_plugin.evaluation.search_report import SearchReport
from sbc_plugin.evaluation.series_page import search_page, sweep_page
from sbc_plugin.evaluation.sweep_table import SweepTable
from sbc_plugin.evaluation.verdict import Verdict, verdict

__all__ = [
    "Activity",
    "Answers",
    "Check",
    "Comparison",
    "Cost",
    "Evaluation",
    "Inspection",
    "LayerOperations",
    "LayerPlan",
    "LayerReport",
    "NeuronComparison",
    "Point",
    "Recording",
    "Report",
    "Runtime",
    "RuntimeComparison",
    "SearchReport",
    "SweepTable",
    "Verdict",
    "accuracy",
    "compare",
    "evaluate",
    "inspect",
    "page",
    "record_spikes",
    "search_page",
    "sweep_page",
    "verdict",
]
