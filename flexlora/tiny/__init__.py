"""`scale=tiny`: everything that generates data or pretrains a small model, so that each benchmark runs offline.

`tasks/` holds a task for each benchmark (`task.family`), `models/` a small relative of each backbone (`model.kind`).
`english/`, `world/` and `digit_images.py` generate the data; `pretrain_*.py` pretrain the models; `model_cache.py`
keeps them.
"""
