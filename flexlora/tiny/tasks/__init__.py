"""Generated data, one file for each family: `synthetic` (GLUE), `digits` (VTAB-1K), `small_world` (Commonsense),
`arithmetic` (GSM8K), `small_functions` (HumanEval).
"""
