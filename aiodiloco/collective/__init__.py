"""The all-reduce: tensors of all ranks in, their mean out, nothing between the ranks but objects in a store."""

from aiodiloco.collective.all_reduce import ObjectStoreAllReduce
from aiodiloco.collective.keys import Member
from aiodiloco.collective.meter import AllReduceReport
from aiodiloco.collective.plan import Link

__all__ = ["AllReduceReport", "Link", "Member", "ObjectStoreAllReduce"]
