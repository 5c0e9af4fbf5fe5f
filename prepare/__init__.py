"""Data before training: corpora, decontamination, exposure, teacher and judge."""
