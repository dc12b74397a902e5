"""Token-wise swap and recompute (after MEMO, SIGMOD'25): the first rows of a block's saved tensors are swapped, the
others computed again, by running the block's forward on those rows alone just before its backward."""
