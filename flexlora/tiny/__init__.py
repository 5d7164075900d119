"""`scale=tiny`: this package generates data and pretrains small models, so that every benchmark runs offline.

`tasks/` holds one task for each benchmark (`task.family`). `models/` holds one small relative of each backbone
(`model.kind`). `english/`, `world/` and `digit_images.py` generate the data. `pretrain_*.py` pretrain the models, and
`model_cache.py` caches them.
"""
