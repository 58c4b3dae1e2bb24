"""How good a network is, by its answers to labelled sequences or by a function of the user's; and what it costs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import labels_of, peek, repeatable
from sbc_plugin.calibration.fingerprint import digest
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.evaluation.accuracy import right_sequences
from sbc_plugin.evaluation.operations import Cost, OperationCounter, sequences_of
from sbc_plugin.layers import Forward


@dataclass(frozen=True)
class Judged:
    """What is known of one network.

    Attributes:
        score: the fraction of right answers, or what the function of the user's returned; more is better.
        right: (N,) which sequences were answered rightly; None where a function of the user's decides.
        cost: operations, energy and size.
    """

    score: float
    right: Tensor | None
    cost: Cost


class Judge:
    """Judges networks on the same data, in the same order.

    Args:
        example: a batch, on which operations are counted where there is no test data.
        test_data: labelled batches; None where ``evaluate`` decides.
        evaluate: ``evaluate(model)`` returns a number of which more is better; None where answers decide.
        forward: ``forward(model, batch)`` runs one whole sequence.
        batch_first: as for ``compress``.

    Attributes:
        labels: (N,) of the test data, once a network was judged.

    Raises:
        SettingsError: neither test data nor a function, both, or what is none.
    """

    def __init__(
        self,
        example: Any,
        test_data: Iterable[Any] | None,
        evaluate: Callable[[nn.Module], Any] | None,
        forward: Forward | None,
        batch_first: bool | None,
    ) -> None:
        if test_data is None and evaluate is None:
            raise SettingsError(
                "nothing says how good a network is: give test_data, batches with labels, or evaluate, a function of "
                "the model that returns a number of which more is better"
            )
        if test_data is not None and evaluate is not None:
            raise SettingsError("test_data and evaluate both say how good a network is; leave one of them out")
        if evaluate is not None and not callable(evaluate):
            raise SettingsError(f"evaluate={evaluate!r} cannot be called; give a function of the model")
        self.data = [example] if test_data is None else repeatable(peek(test_data)[1])
        self.evaluate, self.forward, self.batch_first = evaluate, forward, batch_first
        self.labels: Tensor | None = None
        self._seen: list[str] | None = None

    @autocast_off()
    def __call__(self, model: nn.Module) -> Judged:
        """Run a network, which is left as it was.

        Raises:
            CalibrationError: no labels, an output of another shape, or data that is not the same at each pass.
            SettingsError: the function of the user's returns no finite number.
        """
        first, data = peek(self.data)
        counter = OperationCounter(model, first, self.forward, self.batch_first)
        right, labels, seen, sequences = [], [], [], 0
        for number, batch in enumerate(data):
            sequences += sequences_of(counter.run(batch, number))
            if self.evaluate is None:
                found = labels_of(batch)
                if found is None:
                    raise CalibrationError(
                        f"batch {number} of test_data holds no labels; give pairs (x, labels), or evaluate=, a "
                        "function of the model that returns a number of which more is better"
                    )
                right.append(right_sequences(counter.output, found, number))
                labels.append(found.cpu())
                seen.append(digest(batch))
        cost = counter.cost(sequences)
        if self.evaluate is not None:
            return Judged(_number(self.evaluate(model)), None, cost)
        if self._seen is not None and self._seen != seen:
            raise CalibrationError(
                "test_data is not the same at each pass, so networks cannot be compared sequence by sequence; give it "
                "without shuffling and augmentation, or as list(test_data)"
            )
        self._seen, self.labels = seen, torch.cat(labels)
        answers = torch.cat(right)
        return Judged(float(answers.double().mean()), answers, cost)


def _number(value: Any) -> float:
    """What a function of the user's returned, as a number.

    Raises:
        SettingsError: it is none, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise SettingsError(f"evaluate returned {value!r:.80}; a finite number is needed, of which more is better")
    return number
