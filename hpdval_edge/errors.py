"""The errors a user can cause or meet; each carries the exit code of the command line (DESIGN section 3)."""


class HpedgeError(Exception):
    """One clear sentence: the value received and the remedy."""

    exit_code = 1


class CheckFailed(HpedgeError):
    """A check that a command made came out negative."""

    exit_code = 1


class UsageError(HpedgeError):
    """An option, a configuration key or a combination of them that cannot be honoured."""

    exit_code = 2


class BadData(HpedgeError):
    """Input data that cannot be read or contradicts itself."""

    exit_code = 3


class MissingDependency(HpedgeError):
    """A package, a download, a device or disk space that is not there."""

    exit_code = 4
