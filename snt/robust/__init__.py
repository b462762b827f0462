"""RSN-Tune: safety tuning that is to outlast a later fine-tune, and the arms that show it."""
