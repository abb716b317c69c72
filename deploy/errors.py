"""The one exception for a user's mistake."""


class LabError(Exception):
    """What a user can mend: the text says the value, the limit and the remedy.

    The command-line entry points print the text without a traceback and exit with code 2. Everything
    else that is raised is a defect of ours and keeps its traceback.
    """
