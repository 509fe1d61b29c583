"""QANN -> better QANN: the loop, the losses, and paths-ensemble training (PET)."""
