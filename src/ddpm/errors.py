"""The one exception a user is meant to read."""


class Refused(ValueError):
    """A demand that can not be met: its message is one sentence that names the thing and the remedy."""


class Diverged(Refused):
    """The numbers of a run were lost after it had begun."""
