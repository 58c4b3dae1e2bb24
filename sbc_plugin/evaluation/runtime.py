"""What a model takes in a runtime that knows nothing of spikes, and what compression brings there."""

from dataclasses import dataclass

FASTER = 0.9  # of the time before, from which on a model counts as faster; less is noise


@dataclass(frozen=True)
class Runtime:
    """A model in onnxruntime, one sequence at a time, on one thread.

    Attributes:
        milliseconds: of processor time a sequence.
        file_bytes: of the ONNX file that holds one time step, or of a whole sequence where the model takes only that.
        weights: numbers in the file that inputs are multiplied with, zeros included.
        integers: how many of them the file holds as integers.
    """

    milliseconds: float
    file_bytes: int
    weights: int
    integers: int


@dataclass(frozen=True)
class RuntimeComparison:
    """Dense against compressed.

    Attributes:
        dense: before.
        compressed: after.
    """

    dense: Runtime
    compressed: Runtime

    @property
    def reasons(self) -> list[str]:
        """What did not get better, and why, a sentence each."""
        before, after = self.dense, self.compressed
        found = []
        if after.milliseconds > FASTER * before.milliseconds:
            if after.weights == before.weights:
                found.append(
                    f"not faster: onnxruntime multiplies zeros as all other weights ({after.weights:,} in both files);"
                    " cut whole channels to have fewer, or run it where zeros are skipped"
                )
            else:
                found.append("not faster: the weights that are left are not what takes the time")
            if after.integers:
                found.append("integers make the file smaller, not quicker: in each step they become floats again")
        if after.file_bytes > FASTER * before.file_bytes and not after.integers:
            found.append(
                "the file is not smaller: it holds zeros and floats; with compress(..., backend='brevitas') it holds "
                "integers"
            )
        return found

    def __str__(self) -> str:
        """The lines that people read.

        >>> print(RuntimeComparison(Runtime(2.0, 80_000, 100, 0), Runtime(1.0, 20_000, 50, 50)))
        onnxruntime, one thread: 2.00 -> 1.00 ms a sequence; file: 80.0 -> 20.0 kB
        """
        before, after = self.dense, self.compressed
        lines = [
            f"onnxruntime, one thread: {before.milliseconds:.2f} -> {after.milliseconds:.2f} ms a sequence; "
            f"file: {before.file_bytes / 1000:,.1f} -> {after.file_bytes / 1000:,.1f} kB"
        ]
        return "\n".join([*lines, *self.reasons])
