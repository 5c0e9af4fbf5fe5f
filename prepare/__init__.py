"""Data before training: corpora, decontamination, the exposure audit, teacher and judge."""
