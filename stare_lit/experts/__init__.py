"""Scripted demonstrators; each acts in the policy's own action space from privileged state."""
