"""Pretrain a small Transformer, expand it losslessly, go on training, account for every FLOP."""

__version__ = "0.1.0"
