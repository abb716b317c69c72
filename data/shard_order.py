"""The order of training images that lie in shards: mixed, yet a few shards at a time."""

from __future__ import annotations

import numpy as np

from data.index import Index, Int64


def order_by_shard(rows: Int64, shard_of_row: Int64, window: int, rng: np.random.Generator) -> Int64:
    """Any multiset of rows in a new order: the shards are shuffled and cut into groups of `window`, the rows
    shuffled within each group.

    `rows` int64 [n] index `shard_of_row`, int64, which numbers the shards from 0; int64 [n] comes back.
    """
    group = rng.permutation(int(shard_of_row.max()) + 1) // window
    shuffled = rows[rng.permutation(len(rows))]
    return shuffled[np.argsort(group[shard_of_row[shuffled]], kind="stable")]


def shards_of_rows(index: Index) -> Int64:
    """int64 [n]: which of `index.shards` holds each image."""
    number = {shard.file: n for n, shard in enumerate(index.shards)}
    return np.array([number[path.rpartition("#")[0]] for path in index.paths], np.int64)
