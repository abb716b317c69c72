"""Commands that span the rooms. Each is `python -m scripts.NAME`."""
