"""The base class of all errors that a user can put right."""


class UserError(Exception):
    """Raised for an error that the caller can put right: the message is one line, says what is wrong and tells the fix.

    The command line prints the message and ends with exit code 2. Any other exception is a bug and shows its traceback.
    """
