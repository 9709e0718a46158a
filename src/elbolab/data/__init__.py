"""Datasets: files to arrays, arrays to stratified splits, splits to batches."""

from elbolab.data.splits import Batch, Data, DataSpec, Split, load_data

__all__ = ["Batch", "Data", "DataSpec", "Split", "load_data"]
