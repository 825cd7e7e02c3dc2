"""The one exception a user is meant to read."""


class Refused(ValueError):
    """A demand that cannot be met: its message is one sentence that names the thing and the remedy."""


class Failed(Refused):
    """A run that had begun cannot go on; the reason may be known to one rank alone."""


class Diverged(Failed):
    """Its numbers were lost: every rank knows."""
