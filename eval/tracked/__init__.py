"""What W&B gets of a run after its training: scores, slices, exports."""

from .late import log_late as log_late
