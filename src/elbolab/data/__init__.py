"""Datasets: files to arrays, arrays to stratified splits, splits to batches."""

from elbolab.data.batches import Batch, Data, DataSpec, Split
from elbolab.data.splits import load_data
from elbolab.data.stored import Arrays

__all__ = ["Arrays", "Batch", "Data", "DataSpec", "Split", "load_data"]
