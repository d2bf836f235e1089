"""The errors svdflow raises on purpose. Each message says what, where, why and what to do, in one line."""


class SvdflowError(Exception):
    """Base of all errors that a user can act on; shown as one line, without a traceback."""


class BadInputError(SvdflowError):
    """The input (a file, a manifest, an argument) cannot be used."""


class ConfigError(SvdflowError):
    """A setting is unknown, of the wrong type or contradicts another."""


class StorageError(SvdflowError):
    """The data root or the object store cannot be read or written."""


class ValidationFailed(SvdflowError):
    """A manifest broke a hard expectation."""


class GateRefused(SvdflowError):
    """The evaluated model did not pass the promotion gate."""


class ServiceError(SvdflowError):
    """A server that a step needs (object store, Triton) did not start or did not answer."""
