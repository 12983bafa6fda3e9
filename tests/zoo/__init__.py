"""Networks that people prune, from torchvision, timm and transformers: traced, cut, compared."""
