"""One LightningModule a phase: ``sft`` (imitation), ``sta_tpo`` (preference), ``sta_ppo`` (interaction)."""
