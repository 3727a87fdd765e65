"""What stops a run that began well."""


class LossNotFinite(Exception):
    """The loss or its gradient became infinite or NaN; the message names the step's samples."""
