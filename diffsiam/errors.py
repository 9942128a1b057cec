"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A failure that the user can mend.

    The message says what failed, where, the value met, the values allowed and what to do next. Entry points
    print it alone, without a traceback, and exit with status 2.
    """
