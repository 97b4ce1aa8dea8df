"""A stage's `precision` in torch's types."""

import torch

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-autocast": torch.float32, "fp16": torch.float16}
"""Of the weights that an engine computes with, by precision."""
PRODUCTS = WEIGHTS | {"bf16-autocast": torch.bfloat16}
"""Of its matrix products."""
