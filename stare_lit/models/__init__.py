"""Policies: ``nn.Module`` only, never Lightning."""
