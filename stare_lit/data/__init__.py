"""Data: the trajectory file format, and LightningDataModules that make what is missing before they serve it."""
