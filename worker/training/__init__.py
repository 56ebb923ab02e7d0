"""Makes guards: data pipeline and training recipes. The only other place that may import torch."""
