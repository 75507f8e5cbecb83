"""The error that a user can mend."""


class InputError(ValueError):
    """Bad input from outside: a flag, a file, a setting.

    The message is one line that says what was found, what was expected and how to mend it.
    Commands print it alone and exit with status 2; library users catch it as a `ValueError`.
    """
