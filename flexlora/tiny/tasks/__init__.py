"""Generated data, one file a `task.family`: `synthetic` (GLUE), `digits` (VTAB-1K), `small_world` (Commonsense)."""
