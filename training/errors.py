"""What stops a run that began well."""


class LossNotFinite(Exception):
    """The loss became infinite or NaN; the message names the samples of the step."""
