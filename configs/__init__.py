"""Values in YAML, their shape in `schema`. Knows nothing of how anything is computed."""
