"""Datasets that commands in ``tools/dataset_converters`` write, and how to write datasets in COCO's format."""
