"""What a .pyz has as its `__main__.py`: is the Python new enough, and is the code that opens the rest whole?

In the syntax of Python 2.7 and 3.6, which older devices have, so that they get a line and no SyntaxError.
"""

import sys

OPENERS = (
    "deploy/__init__.py",
    "deploy/errors.py",
    "deploy/archive.py",
    "deploy/unpack.py",
    "deploy/start.py",
)
"""What runs before every file was checked, so it is checked here; nothing else is imported by it."""


def _damage(archive):
    # type: (str) -> str
    """What is wrong with those files; empty where nothing is."""
    import hashlib
    import json
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened:
            files = json.loads(opened.read("archive.json").decode("utf-8"))["files"]
            for name in OPENERS:
                if hashlib.sha256(opened.read(name)).hexdigest() != files[name]:
                    return name + " was altered"
    except Exception as error:  # whatever a damaged archive makes of itself: zipfile promises no one type
        return "{}".format(error)  # noqa: UP032  # Python 2.7 would not even read an f-string
    return ""


def _main():
    # type: () -> int
    if sys.version_info < (3, 10):  # noqa: UP036  # whoever has an older one is told here
        have = "{}.{}".format(*sys.version_info[:2])
        sys.stderr.write(
            "error: Python "
            + have
            + " is too old, 3.10 is the least: on a Jetson that comes with JetPack 6; "
            "elsewhere install it, and run this file with it (python3.10 " + sys.argv[0] + " ...)\n"
        )
        return 2
    damage = _damage(sys.path[0])
    if damage:
        sys.stderr.write("error: " + sys.argv[0] + ": damaged (" + damage + "); copy the file again\n")
        return 2
    from deploy.start import start

    return start(sys.path[0])


if __name__ == "__main__":
    sys.exit(_main())
